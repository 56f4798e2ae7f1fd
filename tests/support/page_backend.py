"""A backend for tests of the web page: every token has a text of its own, a probability, and blocks that it read."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

from freehold.core.clients import Client
from freehold.core.events import Event, FinishEvent, TokenEvent
from freehold.core.logprobs import TokenLogprobs
from freehold.core.provenance import BlockReads, Provenance
from freehold.core.sampling import SamplingParams
from freehold.core.visuals import Placed
from freehold.server.backend import Stream
from support.fake_backend import FakeBackend, FakeStream, Script

BLOCK_TOKENS = 16

HELLO = Script()


class PageBackend(FakeBackend):
    """A FakeBackend whose answers have log-probabilities and provenance, as they were asked for.

    Token number i of an answer reads the first block, block 1 + i % 3 if the context has it, and its own: twice, once,
    once. sparse_layers=0: a dense model, of which nothing is known but its positions.
    """

    def __init__(self, script: Any = HELLO, *, sparse_layers: int = 1, **options: Any) -> None:
        super().__init__(script, **options)
        self.sparse_layers = sparse_layers
        self.counters: dict[str, float | int | str] = {"block_tokens": BLOCK_TOKENS}
        self._texts: list[bytes] = []

    def token_bytes(self, token_id: int) -> bytes:
        return self._texts[token_id]

    def new_token(self, text: bytes) -> int:
        """The id of a token with this text."""
        if text not in self._texts:
            self._texts.append(text)
        return self._texts.index(text)

    def stats(self) -> dict[str, float | int | str]:
        running = sum(not stream.ended for stream in self.streams)
        return {**super().stats(), "requests_running": running, **self.counters}

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        client: Client,
        priority: int,
        provenance: bool = False,
        visuals: Sequence[Placed] = (),
    ) -> Any:
        stream = super().submit(prompt_ids, params, client=client, priority=priority, provenance=provenance)
        checked: Stream = _PageStream(self, stream, provenance)
        return checked


class _PageStream:
    """A stream with what was asked for beside its tokens."""

    def __init__(self, backend: PageBackend, inner: FakeStream, provenance: bool) -> None:
        self._backend, self._inner, self._provenance = backend, inner, provenance
        self.request_id = inner.request_id

    def cancel(self) -> None:
        self._inner.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        tokens = iter(self._inner.script.tokens)
        count = 0
        async for event in self._inner:
            if isinstance(event, TokenEvent):
                token_id = self._backend.new_token(next(tokens))
                count += 1
                logprobs = None if self._inner.params.logprobs is None else TokenLogprobs(-0.5)
                yield dataclasses.replace(event, token_id=token_id, logprobs=logprobs)
            elif isinstance(event, FinishEvent) and self._provenance:
                yield dataclasses.replace(event, provenance=self._reads(count))
            else:
                yield event

    def _reads(self, count: int) -> Provenance:
        prompt = len(self._inner.prompt_ids)
        reads = []
        for number in range(count):
            position = prompt - 1 + number
            own = position // BLOCK_TOKENS
            heads = (tuple(sorted({0, own})), tuple(sorted({0, min(1 + number % 3, own)})))
            layers = dict.fromkeys(range(self._backend.sparse_layers), heads)
            reads.append(BlockReads(position, layers))
        return Provenance(BLOCK_TOKENS, tuple(reads))
