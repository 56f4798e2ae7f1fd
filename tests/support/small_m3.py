"""A small M3 for tests with real clients: random weights, M3's own block size and selection, a vocabulary of words."""

from __future__ import annotations

import json
from pathlib import Path

from freehold.model.m3_tokens import END_OF_TURN, IMAGE, VIDEO
from support.byte_tokenizer import learned_merges, write_byte_tokenizer
from support.repository import PACKAGE, documents
from support.tiny_m3 import TinyM3Spec, write_tiny_m3

_NUM_MERGES = 3000
SMALL_M3 = TinyM3Spec(
    "tiny-m3",
    hidden_size=32,
    dense_size=64,
    expert_size=32,
    num_experts=4,
    head_dim=32,
    index_dim=32,
    vocab_size=3328,
    context_length=1 << 20,
)


def write_small_m3(folder: Path) -> Path:
    """The directory of a checkpoint below `folder`. Its words come from this project's documents: agents send long
    prompts, which would be three times as long in bytes."""
    directory = folder / SMALL_M3.name
    write_tiny_m3(SMALL_M3, directory)
    texts = [page.read_text("utf-8") for page in (*documents(), *sorted((PACKAGE / "server").glob("*.py")))]
    write_byte_tokenizer(directory, learned_merges(texts, _NUM_MERGES))
    added = json.loads((directory / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    _change(directory / "config.json", image_token_index=ids[IMAGE], video_token_index=ids[VIDEO])
    _change(directory / "generation_config.json", eos_token_id=ids[END_OF_TURN])
    return directory


def _change(path: Path, **fields: int) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **fields}), encoding="utf-8")
