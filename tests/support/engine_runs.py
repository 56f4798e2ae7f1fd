"""Running requests through an engine, and what its model said on the way."""

from __future__ import annotations

import pytest
import torch

from freehold.core.events import FinishEvent, TokenEvent
from freehold.core.sampling import SamplingParams
from freehold.engine.engine import Engine


def run(engine: Engine, *requests: tuple[list[int], SamplingParams]) -> list[list[int]]:
    """Runs requests together; the tokens of each."""
    ids = [engine.submit(prompt, params) for prompt, params in requests]
    answers: dict[str, list[int]] = {i: [] for i in ids}
    while engine.busy:
        for event in engine.step():
            if isinstance(event, TokenEvent):
                answers[event.request_id].append(event.token_id)
            if isinstance(event, FinishEvent):
                assert event.error is None
    engine.cache.check_integrity()
    return [answers[i] for i in ids]


def logits_of_steps(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[int, ...], torch.Tensor]]:
    """Records (position, tokens up to there, logits) of every sampled row."""
    seen: list[tuple[int, tuple[int, ...], torch.Tensor]] = []
    original = engine.runner.run

    def recording(pieces, rows, *rest):  # type: ignore[no-untyped-def]
        logits = original(pieces, rows, *rest)
        ends = torch.tensor([length for _, _, length in pieces]).cumsum(0) - 1
        for n, row in enumerate(rows):
            piece = pieces[int((ends == row).nonzero()[0])]
            seen.append((piece[1] + piece[2] - 1, tuple(piece[0].tokens[: piece[1] + piece[2]]), logits[n].clone()))
        return logits

    monkeypatch.setattr(engine.runner, "run", recording)
    return seen
