"""From text to ids and back: exact bytes, no forged special tokens, nothing added unasked."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors

from freehold.core.errors import TokenizerError
from freehold.model import m3_tokens
from freehold.model.tokenizer import Tokenizer
from support.byte_tokenizer import MERGES, SPECIAL_TOKENS, write_byte_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(directory)


@pytest.fixture
def editable(tmp_path: Path) -> Path:
    write_byte_tokenizer(tmp_path)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON object in a file."""
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(value | changes))


texts_near_special = st.lists(st.sampled_from([*SPECIAL_TOKENS, "]", "[", "~", "<mm:", "think>", "the ", "e"])).map(
    "".join
)


@given(text=st.text())
def test_any_text_survives_encoding_and_decoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=texts_near_special)
def test_no_text_can_forge_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text


@given(text=texts_near_special)
def test_allowed_special_tokens_decode_to_their_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True), skip_special=False) == text


def test_allowed_special_tokens_become_one_id_each(tokenizer: Tokenizer) -> None:
    for name in SPECIAL_TOKENS:
        assert tokenizer.encode(name, allow_special=True) == [tokenizer.token_id(name)]


def test_both_ways_of_encoding_can_run_at_the_same_time(tokenizer: Tokenizer) -> None:
    text = "the end[e~[of it" * 20

    def encode(allow_special: bool) -> bool:
        special = not tokenizer.special_ids.isdisjoint(tokenizer.encode(text, allow_special=allow_special))
        return special == allow_special

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(encode, [True, False] * 100))


def test_a_lone_surrogate_is_refused_by_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"U\+D83D at character 2"):
        tokenizer.encode("ab\ud83d")


def test_a_token_is_its_bytes(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert [tokenizer.token_bytes(256 + i) for i in range(len(MERGES))] == [
        (left + right).replace("Ġ", " ").encode() for left, right in MERGES
    ]


def test_a_special_token_stands_for_its_name(tokenizer: Tokenizer) -> None:
    for name in SPECIAL_TOKENS:
        token_id = tokenizer.token_id(name)
        assert token_id is not None
        assert tokenizer.token_bytes(token_id) == name.encode()


@pytest.mark.parametrize("offset", [0, 1, 100_000])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer, offset: int) -> None:
    for token_id in (tokenizer.vocab_size + offset, -1 - offset):
        with pytest.raises(TokenizerError, match=f"token id {token_id} is not in the vocabulary"):
            tokenizer.token_bytes(token_id)
        with pytest.raises(TokenizerError):
            tokenizer.decode([token_id])


def test_decoding_leaves_special_tokens_out_unless_told(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<mm:think>b[e~[", allow_special=True)
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, skip_special=False) == "a<mm:think>b[e~["


def test_bytes_that_are_no_text_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([0xE2, 0x82, 0x41, 0xFF]) == "\ufffdA\ufffd"


def test_facts_come_from_the_configuration(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 256 + len(MERGES) + len(SPECIAL_TOKENS) < 320
    assert tokenizer.bos_token == m3_tokens.ROLE_OPENER
    assert tokenizer.eos_token == m3_tokens.END_OF_TURN
    assert tokenizer.eos_ids == {tokenizer.token_id(m3_tokens.END_OF_TURN)}
    assert tokenizer.chat_template is None


# -- BOS -----------------------------------------------------------------------------------------------------


def test_no_bos_is_put_in_front_unless_the_files_say_so(tokenizer: Tokenizer, editable: Path) -> None:
    plain = tokenizer.encode("the")
    edit(editable / "tokenizer_config.json", add_bos_token=True)
    with_bos = Tokenizer.from_directory(editable)
    assert tokenizer.bos_id not in plain
    assert with_bos.add_bos
    assert with_bos.encode("the") == [with_bos.bos_id, *plain]
    assert with_bos.encode("the", add_bos=False) == plain
    assert with_bos.encode("") == [with_bos.bos_id]


def test_a_bos_is_never_doubled(tokenizer: Tokenizer) -> None:
    text = m3_tokens.ROLE_OPENER + "x"
    once = tokenizer.encode(text, allow_special=True, add_bos=True)
    assert once == tokenizer.encode(text, allow_special=True, add_bos=False)


def test_a_post_processor_that_adds_a_bos_counts_as_the_files_say_so(editable: Path) -> None:
    backend = Backend.from_file(str(editable / "tokenizer.json"))
    bos_id = backend.token_to_id(m3_tokens.ROLE_OPENER)
    backend.post_processor = processors.TemplateProcessing(
        single="]~b] $A", special_tokens=[(m3_tokens.ROLE_OPENER, bos_id)]
    )
    backend.save(str(editable / "tokenizer.json"))
    config = json.loads((editable / "tokenizer_config.json").read_text())
    del config["add_bos_token"]
    assert Tokenizer.from_file(editable / "tokenizer.json", config=config).add_bos
    assert not Tokenizer.from_file(editable / "tokenizer.json", config=config | {"add_bos_token": False}).add_bos


def test_asking_for_a_bos_that_does_not_exist_is_refused(directory: Path) -> None:
    bare = Tokenizer.from_file(directory / "tokenizer.json")
    assert (bare.bos_id, bare.bos_token, bare.eos_token, bare.eos_ids) == (None, "", "", frozenset())
    with pytest.raises(TokenizerError, match="no BOS"):
        bare.encode("x", add_bos=True)
    with pytest.raises(TokenizerError, match="names no BOS"):
        Tokenizer.from_file(directory / "tokenizer.json", config={"add_bos_token": True})


# -- where the facts come from -------------------------------------------------------------------------------


def test_end_tokens_of_all_sources_count(editable: Path) -> None:
    edit(editable / "generation_config.json", eos_token_id=[1, 2])
    tokenizer = Tokenizer.from_directory(editable, extra_eos_ids=[3])
    assert tokenizer.eos_ids == {tokenizer.token_id(m3_tokens.END_OF_TURN), 1, 2, 3}
    assert tokenizer.eos_token == m3_tokens.END_OF_TURN


def test_an_end_token_outside_the_vocabulary_is_refused(editable: Path) -> None:
    edit(editable / "generation_config.json", eos_token_id=200020)
    with pytest.raises(TokenizerError, match="eos id 200020 is outside the vocabulary"):
        Tokenizer.from_directory(editable)


def test_a_named_token_that_does_not_exist_is_refused(editable: Path) -> None:
    edit(editable / "tokenizer_config.json", eos_token={"content": "</s>"})
    with pytest.raises(TokenizerError, match="eos_token is '</s>', which is not in the vocabulary"):
        Tokenizer.from_directory(editable)


def test_the_template_file_goes_before_the_configuration(editable: Path) -> None:
    edit(editable / "tokenizer_config.json", chat_template="from config")
    assert Tokenizer.from_directory(editable).chat_template == "from config"
    (editable / "chat_template.jinja").write_text("from file")
    assert Tokenizer.from_directory(editable).chat_template == "from file"


def test_of_several_named_templates_the_default_is_taken(editable: Path) -> None:
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    edit(editable / "tokenizer_config.json", chat_template=named)
    assert Tokenizer.from_directory(editable).chat_template == "d"
    edit(editable / "tokenizer_config.json", chat_template=named[:1])
    with pytest.raises(TokenizerError, match="'rag'"):
        Tokenizer.from_directory(editable)


def test_a_length_limit_left_in_the_file_cuts_nothing(editable: Path, tokenizer: Tokenizer) -> None:
    backend = Backend.from_file(str(editable / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(editable / "tokenizer.json"))
    loaded = Tokenizer.from_directory(editable)
    for allow_special in (False, True):
        ids = tokenizer.encode("hello world", allow_special=allow_special)
        assert loaded.encode("hello world", allow_special=allow_special) == ids


# -- digest --------------------------------------------------------------------------------------------------


def test_the_digest_is_of_what_decides_the_encoding(editable: Path, tokenizer: Tokenizer) -> None:
    path = editable / "tokenizer.json"
    document = json.loads(path.read_text())
    assert Tokenizer.from_directory(editable).digest() == tokenizer.digest()
    assert len(tokenizer.digest()) == 64
    edit(path, truncation={"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0})
    assert Tokenizer.from_directory(editable).digest() == tokenizer.digest()

    seen = {tokenizer.digest()}
    merges = document["model"]["merges"]
    ordinary = [dict(token, special=False) for token in document["added_tokens"]]
    for change in (
        {"model": document["model"] | {"merges": [*merges[:2], merges[3], merges[2], *merges[4:]]}},
        {"added_tokens": ordinary},
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": document["pre_tokenizer"]["pretokenizers"][-1]},
    ):
        path.write_text(json.dumps(document | change))
        seen.add(Tokenizer.from_directory(editable).digest())
    path.write_text(json.dumps(document))
    edit(editable / "tokenizer_config.json", add_bos_token=True)
    seen.add(Tokenizer.from_directory(editable).digest())
    assert len(seen) == 6


# -- directories ---------------------------------------------------------------------------------------------


def split_files(directory: Path) -> None:
    """Turns a tokenizer.json into vocab.json, merges.txt and added_tokens_decoder."""
    document = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = {t: i for t, i in document["model"]["vocab"].items() if t not in SPECIAL_TOKENS}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "\n".join(" ".join(pair) for pair in document["model"]["merges"])
    (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    decoder = {str(token.pop("id")): token for token in document["added_tokens"]}
    edit(directory / "tokenizer_config.json", added_tokens_decoder=decoder)
    (directory / "tokenizer.json").unlink()


def test_vocabulary_and_merges_make_the_same_tokenizer(editable: Path, tokenizer: Tokenizer) -> None:
    split_files(editable)
    edit(editable / "config.json", model_type="minimax_m3_vl")
    assert Tokenizer.from_directory(editable).digest() == tokenizer.digest()


def test_vocabulary_and_merges_need_to_know_their_pre_tokenizer(editable: Path, tokenizer: Tokenizer) -> None:
    split_files(editable)
    with pytest.raises(TokenizerError, match=r"give pre=, one of .*minimax-m2"):
        Tokenizer.from_directory(editable)
    assert Tokenizer.from_directory(editable, pre="minimax-m2").digest() == tokenizer.digest()
    assert Tokenizer.from_directory(editable, pre="gpt-2").digest() != tokenizer.digest()


def test_a_pre_tokenizer_beside_a_tokenizer_json_is_refused(directory: Path) -> None:
    with pytest.raises(TokenizerError, match="decides that itself"):
        Tokenizer.from_directory(directory, pre="gpt-2")


def test_damaged_files_are_refused_by_name(editable: Path) -> None:
    split_files(editable)
    with (editable / "merges.txt").open("a") as file:
        file.write("a b c\n")
    with pytest.raises(TokenizerError, match=r"merges.txt: line 10 is 'a b c\\n'"):
        Tokenizer.from_directory(editable, pre="gpt-2")
    (editable / "merges.txt").write_text("x yz\n")
    with pytest.raises(TokenizerError, match="merges do not fit"):
        Tokenizer.from_directory(editable, pre="gpt-2")
    (editable / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"not a usable tokenizer\.json"):
        Tokenizer.from_directory(editable)


def test_an_added_token_cannot_sit_on_another_ones_id(editable: Path) -> None:
    split_files(editable)
    decoder = {"900": {"content": "<far>", "special": True}}
    edit(editable / "tokenizer_config.json", added_tokens_decoder=decoder, bos_token=None, eos_token=None)
    with pytest.raises(TokenizerError, match="'<far>' should have the id 900"):
        Tokenizer.from_directory(editable, pre="gpt-2")


def test_a_directory_without_a_usable_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer here"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(TokenizerError, match="save_pretrained"):
        Tokenizer.from_directory(tmp_path)
    with pytest.raises(TokenizerError, match="no such tokenizer file"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


# -- other kinds of vocabulary -------------------------------------------------------------------------------


def test_a_sentencepiece_style_vocabulary_is_read_byte_by_byte(tmp_path: Path) -> None:
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "▁h", "▁hi"]
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[("▁", "h"), ("▁h", "i")],
        byte_fallback=True,
        unk_token="<unk>",
    )
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    ids = tokenizer.encode("hi é")
    assert [tokenizer.token_bytes(i) for i in ids] == [b" hi", b" ", b"\xc3", b"\xa9"]
    assert tokenizer.decode(ids) == " hi é"


def test_a_vocabulary_whose_bytes_cannot_be_told_is_refused(tmp_path: Path) -> None:
    backend = Backend(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match=r"decoder is \['WordPiece'\]"):
        Tokenizer.from_directory(tmp_path)


def test_a_special_token_that_is_also_a_word_is_not_forged_silently(editable: Path) -> None:
    document = json.loads((editable / "tokenizer.json").read_text())
    document["added_tokens"].insert(
        0, dict(document["added_tokens"][0], id=document["model"]["vocab"]["the"], content="the")
    )
    (editable / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = Tokenizer.from_directory(editable)
    with pytest.raises(TokenizerError, match="spells the special token 'the'"):
        tokenizer.encode("the")
    assert len(tokenizer.encode("the", allow_special=True)) == 1
