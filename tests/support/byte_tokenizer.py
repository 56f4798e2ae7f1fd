"""A tokenizer for tiny random checkpoints: 256 bytes, a few merges, MiniMax-M3's special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, decoders, models, trainers
from tokenizers import Tokenizer as Backend

from freehold.model import m3_tokens
from freehold.model.token_bytes import LETTER_OF_BYTE
from freehold.model.tokenizer_pre import pre_tokenizer

MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("Ġ", "a"), ("Ġ", "the"), ("r", "e"), ("o", "n")]
SPECIAL_TOKENS = [
    "]!p~[",
    m3_tokens.ROLE_OPENER,
    m3_tokens.END_OF_TURN,
    "]!d~[",
    m3_tokens.IMAGE,
    m3_tokens.VIDEO,
    m3_tokens.START_OF_IMAGE,
    m3_tokens.END_OF_IMAGE,
    "]<]vision pad[>[",
    m3_tokens.BEGIN_OF_DIALOGUE,
    m3_tokens.TOOL_NAMESPACE,
    m3_tokens.THINK_OPEN,
    m3_tokens.THINK_CLOSE,
]


def write_byte_tokenizer(directory: Path, merges: Sequence[tuple[str, str]] = MERGES) -> None:
    """Writes tokenizer.json and tokenizer_config.json; ids 0 to 255 are the bytes, all ids are below 320, or, with
    other merges, below 269 + their number."""
    tokens = [LETTER_OF_BYTE[byte] for byte in range(256)] + [left + right for left, right in merges]
    backend = Backend(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizer("minimax-m2").build()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": False,
        "bos_token": m3_tokens.ROLE_OPENER,
        "eos_token": m3_tokens.END_OF_TURN,
        "unk_token": "]!d~[",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def learned_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """The `count` merges that shorten `texts` most; fewer if there is not enough text."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizer("minimax-m2").build()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + count, initial_alphabet=list(LETTER_OF_BYTE.values()), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]
