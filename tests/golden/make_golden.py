"""Rewrites the fixtures of this directory: `python tests/golden/make_golden.py [prompts|operators|model ...]`.

prompts    token ids for every tiny M3 shape, chosen so that no decision of the model is close to a tie
operators  selected blocks and attention outputs from plain loops in float64, for given random inputs
model      selected blocks and logits of one tiny M3 by transformers, for one prompt beyond 2,048 tokens

Nothing here imports the package: what it writes is what the package is held against.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from support import m3_oracle  # noqa: E402
from support.golden import MODEL_CASE, OPERATOR_CASES, OperatorCase, sampled_rows  # noqa: E402
from support.m3_prompts import CONTINUATION, LENGTHS, PROMPTS_FILE, prompt  # noqa: E402
from support.portable_random import portable_tokens  # noqa: E402
from support.tiny_m3 import SHAPES, TinyM3Spec, build_tiny_m3  # noqa: E402

_CHUNK = 50  # tokens tried at once while a prompt grows
_TRIES = 200  # other tokens tried at one place before giving up


# ------------------------------------------------------------------------------------------------ prompts


def make_prompts() -> None:
    """One stream of tokens for each shape, and for each prompt length the token that ends it."""
    arrays: dict[str, Any] = {}
    for name, spec in SHAPES.items():
        started = time.monotonic()
        model = build_tiny_m3(spec)
        stream = _quiet_stream(model, spec)
        last = [_quiet_last_token(model, stream, length) for length in LENGTHS]
        arrays[name] = np.asarray(stream, dtype=np.int16)
        arrays[f"{name}.last"] = np.asarray(last, dtype=np.int16)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    save_file(arrays, PROMPTS_FILE)


def _quiet_stream(model: Any, spec: TinyM3Spec) -> list[int]:
    """Tokens up to the longest length, none of whose positions holds a close decision.

    Chunk by chunk over transformers' cache: a token at a close position is replaced by another one until no
    position of the chunk is close; what came before is not touched again.
    """
    from transformers import DynamicCache

    drawn = portable_tokens(max(LENGTHS), seed=spec.seed, name="stream").tolist()
    cache = DynamicCache(config=model.config.text_config)
    stream: list[int] = []
    with torch.no_grad(), m3_oracle.traced(model) as trace:
        while len(stream) < len(drawn):
            chunk = drawn[len(stream) : len(stream) + _CHUNK]
            kept_cache, kept_trace = cache, (trace.layers, trace.router_margins)
            for attempt in range(_TRIES):
                cache = copy.deepcopy(kept_cache)
                trace.layers, trace.router_margins = dict(kept_trace[0]), dict(kept_trace[1])
                model(input_ids=torch.tensor([chunk]), past_key_values=cache, use_cache=True)
                tight = trace.tight_positions(len(stream))
                if not tight:
                    break
                place = tight[0] - len(stream)
                chunk[place] = (chunk[place] + 1 + 7 * attempt) % 256
            else:
                raise SystemExit(f"{spec.name}: no quiet tokens found from position {len(stream)} on")
            stream += chunk
    return stream


def _quiet_last_token(model: Any, stream: list[int], length: int) -> int:
    """A last token for the prompt of `length` after which no decision of the greedy continuation is close.

    All but the last token is computed once; what is found is then checked the way the tests run it.
    """
    from transformers import DynamicCache

    before = DynamicCache(config=model.config.text_config)
    with torch.no_grad(), m3_oracle.traced(model) as trace:
        if length > 1:
            model(input_ids=torch.tensor([stream[: length - 1]]), past_key_values=before, use_cache=True)
    for attempt in range(_TRIES):
        tokens = [*stream[: length - 1], (stream[length - 1] + attempt) % 256]
        known = (copy.deepcopy(before), copy.copy(trace)) if length > 1 else None
        if m3_oracle.continue_greedily(model, tokens, CONTINUATION, known=known).is_close:
            continue
        if (
            not m3_oracle.continue_greedily(model, tokens, CONTINUATION).is_close
            and not m3_oracle.run(model, tokens).tight_positions
        ):
            return tokens[-1]
    raise SystemExit(f"no quiet continuation found for length {length}")


# ---------------------------------------------------------------------------------------------- operators


def make_operators() -> None:
    """Select and attend, written as directly as the definition, one query and one head at a time."""
    arrays: dict[str, Any] = {}
    for case in OPERATOR_CASES:
        inputs = {name: array.astype(np.float64) for name, array in case.inputs().items()}
        rows = sampled_rows(case.total, case.name)
        chosen = np.full((len(rows), case.num_kv_heads, case.topk), -1, dtype=np.int32)
        attended = np.zeros((len(rows), case.num_q_heads, case.head_dim))
        for slot, row in enumerate(rows):
            for group in range(case.num_kv_heads):
                blocks = _select(inputs["index_q"][row, group], inputs["index_k"], row, case)
                chosen[slot, group, : len(blocks)] = blocks
                heads = case.num_q_heads // case.num_kv_heads
                k, v = inputs["k"][:, group], inputs["v"][:, group]
                for head in range(group * heads, (group + 1) * heads):
                    attended[slot, head] = _attend(inputs["q"][row, head], k, v, row, blocks, case)
        arrays[f"{case.name}.block_ids"] = chosen
        arrays[f"{case.name}.out"] = attended.astype(np.float32)
    save_file(arrays, HERE / "operators.safetensors")


def _select(index_q: Any, index_k: Any, row: int, case: OperatorCase) -> list[int]:
    """The blocks that the query at `row` reads: forced ones first, then by score, ties to the lower id."""
    local = row // case.block_tokens
    score: dict[int, float] = {}
    for block in range(local + 1):
        first = block * case.block_tokens
        visible = range(first, min(first + case.block_tokens, row + 1))
        score[block] = max(float(np.dot(index_q, index_k[key])) for key in visible)
    for block in range(max(0, local - case.local_blocks + 1), local + 1):
        score[block] = float("inf")
    ranked = sorted(score, key=lambda block: (-score[block], block))
    return sorted(ranked[: case.topk])


def _attend(q: Any, k: Any, v: Any, row: int, blocks: list[int], case: OperatorCase) -> Any:
    """Softmax attention of one query head over the causally visible keys of `blocks`."""
    keys = [
        key
        for block in blocks
        for key in range(block * case.block_tokens, min((block + 1) * case.block_tokens, row + 1))
    ]
    logits = np.array([float(np.dot(q, k[key])) for key in keys]) * case.head_dim**-0.5
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    return sum(weight * v[key] for weight, key in zip(weights, keys, strict=True))


# -------------------------------------------------------------------------------------------------- model


def make_model() -> None:
    """Rows of what transformers computes for `MODEL_CASE`."""
    spec = SHAPES[MODEL_CASE.shape]
    tokens = prompt(spec.name, MODEL_CASE.length)
    reference = m3_oracle.run(build_tiny_m3(spec), tokens)
    assert not reference.tight_positions, f"{spec.name}: close decisions; make the prompts first"
    rows = sampled_rows(len(tokens), spec.name)
    arrays = {f"block_ids.{layer}": ids[rows].numpy() for layer, ids in reference.block_ids.items()}
    arrays["logits"] = reference.logits[rows].numpy()
    save_file(arrays, HERE / "tiny_m3.safetensors")


MAKERS: dict[str, Callable[[], None]] = {
    "prompts": make_prompts,
    "operators": make_operators,
    "model": make_model,
}


def main(wanted: list[str]) -> None:
    unknown = set(wanted) - set(MAKERS)
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(MAKERS)}")
    for name, make in MAKERS.items():
        if not wanted or name in wanted:
            make()
    for path in sorted(HERE.glob("*.safetensors")):
        names = ", ".join(load_file(path))
        print(f"{path.name}: {path.stat().st_size} bytes ({names})")


if __name__ == "__main__":
    main(sys.argv[1:])
