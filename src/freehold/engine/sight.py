"""What a model sees: the features of frames, made between the steps that need them, and laid over a step's rows."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

import torch

from freehold.core.errors import RequestError, UnsupportedFieldError
from freehold.core.visuals import Frames, Overlay, Placed
from freehold.engine.request import Request
from freehold.engine.scheduler import Work
from freehold.model.base import Vision, last_of

FEATURE_BYTES = 256 << 20
"""Most bytes of features that are kept for prompts that are still to be computed, or come again."""


class Sight:
    """A vision encoder and the features that it made last. Not safe for several threads."""

    def __init__(self, vision: Vision | None, *, max_bytes: int = FEATURE_BYTES) -> None:
        self._vision = vision
        self._max_bytes = max_bytes
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._nbytes = 0
        self._begun: tuple[Frames, Iterator[torch.Tensor | None]] | None = None
        self.num_encoded = 0
        """How many frames were encoded since the start."""

    def check(self, prompt: Sequence[int], visuals: Sequence[Placed]) -> None:
        """Raises UnsupportedFieldError for a model that sees nothing, RequestError for frames whose runs do not fit
        into the prompt or have not as many rows as the frames have tokens."""
        if visuals and self._vision is None:
            raise UnsupportedFieldError("this model takes no images and no videos; send text only", field="messages")
        end = 0
        for placed in visuals:
            for run in placed.runs:
                if run.step != 1 or not end <= run.start < run.stop <= len(prompt):
                    raise RequestError(
                        f"an image stands at tokens {run.start} to {run.stop} of a prompt of {len(prompt)} tokens; "
                        "runs must be ascending and lie within it",
                        field="messages",
                    )
                end = run.stop
            rows = sum(map(len, placed.runs))
            if rows != placed.frames.num_tokens:
                raise RequestError(
                    f"an image has {placed.frames.num_tokens} tokens, but {rows} places in the prompt",
                    field="messages",
                )

    def overlay(self, work: Sequence[Work]) -> Overlay | None:
        """What a step's works lay over their rows; None if none of their requests holds frames."""
        if not any(one.request.visuals for one in work):
            return None
        return self.lay([(one.request.tokens, one.request.visuals, one.start, one.length) for one in work])

    def lay(self, pieces: Sequence[tuple[Sequence[int], Sequence[Placed], int, int]]) -> Overlay:
        """What (tokens, frames, start, length) pieces that are computed together lay over their rows; perhaps none."""
        token_ids: list[int] = []
        rows: list[torch.Tensor] = []
        features: list[torch.Tensor] = []
        for tokens, visuals, start, length in pieces:
            base = len(token_ids) - start
            token_ids += tokens[start : start + length]
            for placed in visuals:
                row = 0
                for run in placed.runs:
                    first, end = max(run.start, start), min(run.stop, start + length)
                    if first < end:
                        rows.append(torch.arange(base + first, base + end))
                        features.append(self._of(placed.frames)[row + first - run.start : row + end - run.start])
                    row += len(run)
        ids = torch.tensor(token_ids, dtype=torch.int64)
        if not rows:
            return Overlay(ids, torch.empty(0, dtype=torch.int64), torch.empty(0, 1))
        return Overlay(ids, torch.cat(rows), torch.cat(features))

    def _of(self, frames: Frames) -> torch.Tensor:
        known = self._features.get(frames.digest)
        if known is not None:
            self._features.move_to_end(frames.digest)
            return known
        assert self._vision is not None
        features = last_of(self._vision.steps(frames))
        self._keep(frames, features)
        return features

    def _keep(self, frames: Frames, features: torch.Tensor) -> None:
        self.num_encoded += 1
        self._features[frames.digest] = features
        self._nbytes += features.nbytes
        while self._nbytes > self._max_bytes and len(self._features) > 1:
            self._nbytes -= self._features.popitem(last=False)[1].nbytes

    # --- looking while others answer ------------------------------------------------------------------------

    def ready_tokens(self, request: Request) -> int:
        """How many of a running request's next tokens can be computed: those before frames that were not looked at."""
        sequence = request.sequence
        assert sequence is not None
        waited_for = self._next_run(request)
        end = len(request.tokens) if waited_for is None else waited_for[1].start
        return max(0, end - sequence.num_computed)

    def look(self, requests: Iterable[Request], seconds: float) -> None:
        """Looks at what the first of the requests that waits for frames waits for, for about so long. What was begun is
        brought to its end, whoever asked for it: it is likely to be asked for again."""
        if self._begun is None:
            waited_for = next((found for request in requests if (found := self._next_run(request))), None)
            if waited_for is None:
                return
            assert self._vision is not None
            self._begun = waited_for[0], self._vision.steps(waited_for[0])
        frames, steps = self._begun
        end = time.perf_counter() + seconds
        for features in steps:
            if features is not None:
                self._keep(frames, features)
                self._begun = None
                return
            if time.perf_counter() >= end:
                return

    def _next_run(self, request: Request) -> tuple[Frames, range] | None:
        """The first run of rows that a running request needs, and that cannot be computed yet."""
        assert request.sequence is not None
        for placed in request.visuals:
            if placed.frames.digest not in self._features:
                for run in placed.runs:
                    if run.stop > request.sequence.num_computed:
                        return placed.frames, run
        return None
