"""The engine: `submit` requests, call `step` until they are done."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from freehold.cache import BlockCache, BlockPool
from freehold.core.config import EngineConfig
from freehold.core.errors import (
    BusyError,
    CapacityError,
    ConfigError,
    ContextLengthError,
    RequestError,
    TokenizerError,
)
from freehold.core.events import Event, FinishEvent, FinishReason, PrefillEvent, TokenEvent
from freehold.core.sampling import SamplingParams
from freehold.core.typed import is_kind
from freehold.engine.memory import cache_blocks
from freehold.engine.request import Request
from freehold.engine.runner import Runner
from freehold.engine.sampler import Sampler
from freehold.engine.scheduler import Scheduler, Work
from freehold.model.base import BlockObserver, Model
from freehold.model.detokenizer import StopMatcher, StreamDecoder
from freehold.model.tokenizer import Tokenizer

_KV_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine:
    """Runs requests over one model, in batches, with a shared block cache. Not safe for several threads."""

    def __init__(self, model: Model, tokenizer: Tokenizer, config: EngineConfig) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.context_length = config.context_length or model.context_length
        if self.context_length > model.context_length:
            raise ConfigError(
                f"context_length is {self.context_length}; the model was made for {model.context_length} tokens"
            )
        block_tokens = model.block_tokens or config.default_block_tokens
        dtype = _KV_TYPES[config.kv_dtype]
        num_slots = cache_blocks(model.lane_specs, block_tokens, dtype, config, self.context_length)
        self.cache = BlockCache(
            BlockPool(model.lane_specs, num_slots=num_slots, block_tokens=block_tokens, dtype=dtype)
        )
        self.runner = Runner(model, self.cache)
        self.scheduler = Scheduler(config, self.cache)
        self._requests: dict[str, Request] = {}

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._requests)

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, *, request_id: str | None = None) -> str:
        """Queues a request and returns its id.

        Raises RequestError for tokens that do not exist, ContextLengthError if the prompt and one token exceed
        the context, CapacityError if the whole request can never fit into the cache, BusyError if the queue is full.
        """
        prompt = list(prompt_ids)
        self.check(prompt, params)
        request_id = request_id or uuid.uuid4().hex
        if request_id in self._requests:
            raise RequestError(f"request id {request_id!r} is in use; choose another", field="request_id")
        limit = min(self.context_length, self.cache.capacity_tokens)
        total = limit if params.max_tokens is None else min(limit, len(prompt) + params.max_tokens)
        request = Request(
            request_id=request_id,
            prompt_len=len(prompt),
            tokens=prompt,
            max_total_tokens=total,
            params=params,
            sampler=Sampler(params),
            decoder=StreamDecoder(self.tokenizer),
            stops=StopMatcher(params.stop),
        )
        self._requests[request_id] = request
        self.scheduler.waiting.append(request)
        return request_id

    def check(self, prompt: Sequence[int], params: SamplingParams, *, waiting: int = 0) -> None:
        """Raises the errors of `submit`, without submitting. waiting: requests on their way to the queue."""
        if not prompt:
            raise RequestError("the prompt is empty; send at least one token", field="prompt")
        for name, ids in (
            ("prompt", prompt),
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
        ):
            self._check_ids(name, ids)
        if len(prompt) >= self.context_length:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens; "
                f"the context is {self.context_length} tokens, the answer included",
                field="prompt",
            )
        needed = min(self.context_length, len(prompt) + (params.max_tokens or 1))
        if needed > self.cache.capacity_tokens:
            raise CapacityError(
                f"the request needs {needed} tokens of cache (prompt {len(prompt)}); the cache holds "
                f"{self.cache.capacity_tokens}. Lower max_tokens, or start with a larger cache_tokens",
                field="max_tokens",
            )
        if len(self.scheduler.waiting) + waiting >= self.config.max_waiting:
            raise BusyError(f"{len(self.scheduler.waiting)} requests are waiting already; try again later")

    def _check_ids(self, name: str, ids: Iterable[int]) -> None:
        size = self.model.vocab_size
        for token in ids:
            if not is_kind(token, int) or not 0 <= token < size:
                raise RequestError(f"{name} has token id {token!r}; the vocabulary has {size} tokens", field=name)

    def cancel(self, request_id: str) -> None:
        """The request ends at the next step. Unknown or ended requests are ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            request.cancelled = True

    def step(self) -> list[Event]:
        """Computes one batch and reports what happened; one call is one forward pass of the model."""
        events: list[Event] = [self._finish(r, "cancelled") for r in list(self.scheduler) if r.cancelled]
        plan = self.scheduler.plan()
        if not plan:
            return events
        logits = self._forward(plan)
        for work in plan:
            if work.last:
                events.extend(self._advance(work.request, next(logits)))
            else:
                events.append(PrefillEvent(work.request.request_id, work.start + work.length, work.request.prompt_len))
        return events

    def _forward(self, plan: list[Work]) -> Iterator[np.ndarray]:
        """Logits of the requests that sample, in the plan's order."""
        ends = np.cumsum([work.length for work in plan]) - 1
        rows = [int(end) for work, end in zip(plan, ends, strict=True) if work.last]
        pieces = []
        for work in plan:
            assert work.request.sequence is not None
            if work.request.started is None:
                work.request.started = time.monotonic()
            pieces.append((work.request.sequence, work.start, work.length))
        return iter(self.runner.run(pieces, rows).numpy())

    def _advance(self, request: Request, logits: np.ndarray) -> list[Event]:
        """Samples a request's next token and says what became of it."""
        if not np.isfinite(logits).all():
            return [
                self._finish(request, "error", error="the model's logits are not finite; the weights may be damaged")
            ]
        tokens, params = request.tokens, request.params
        token = request.sampler.sample(logits, tokens[: request.prompt_len], tokens[request.prompt_len :])
        if request.first_token is None:
            request.first_token = time.monotonic()
        tokens.append(token)
        assert request.sequence is not None
        request.sequence.tokens.append(token)
        if token in params.stop_token_ids or (token in self.tokenizer.eos_ids and not params.ignore_eos):
            return [TokenEvent(request.request_id, token, ""), self._finish(request, "stop", flush=True)]
        text, stopped = request.stops.push(_text_of(request, token))
        event = TokenEvent(request.request_id, token, text)
        if stopped:
            return [event, self._finish(request, "stop")]
        if len(tokens) >= request.max_total_tokens:
            return [event, self._finish(request, "length", flush=True)]
        return [event]

    def _finish(
        self, request: Request, reason: FinishReason, *, flush: bool = False, error: str | None = None
    ) -> FinishEvent:
        """Ends a request. With `flush`, text that was held back belongs to the answer."""
        text = ""
        if flush:
            text, stopped = request.stops.push(request.decoder.flush())
            text += "" if stopped else request.stops.flush()
        self.scheduler.remove(request)
        del self._requests[request.request_id]
        return FinishEvent(request.request_id, reason, request.usage(), text, error)

    def abort_all(self, error: str) -> list[Event]:
        """Ends every request with an error; for a step that failed."""
        return [self._finish(request, "error", error=error) for request in list(self.scheduler)]

    def score(
        self,
        token_ids: Sequence[int],
        *,
        observer: Callable[[int], BlockObserver] | None = None,
    ) -> torch.Tensor:
        """Logits (len, vocab_size) float32 of every position of a given text, by the path that answers take:
        in chunks, through the cache. Finds and keeps no prefix. The engine must be idle.

        observer: called with each chunk's first position, gives the chunk's block observer.
        """
        if self.busy:
            raise RequestError("the engine is answering a request; score a text before or after it")
        self._check_ids("token_ids", token_ids)
        if len(token_ids) > min(self.context_length, self.cache.capacity_tokens):
            raise ContextLengthError(
                f"{len(token_ids)} tokens; the context is {self.context_length} and the cache holds "
                f"{self.cache.capacity_tokens} tokens"
            )
        sequence = self.cache.open(token_ids, share=False)
        pieces = []
        try:
            for start in range(0, len(token_ids), self.config.prefill_chunk):
                length = min(self.config.prefill_chunk, len(token_ids) - start)
                if not self.cache.reserve(sequence, start + length):
                    raise CapacityError(f"no room in the cache for {start + length} tokens")
                watch = None if observer is None else observer(start)
                pieces.append(self.runner.run([(sequence, start, length)], range(length), watch))
        finally:
            self.cache.close(sequence)
        return torch.cat(pieces)


def _text_of(request: Request, token: int) -> str:
    """The text that a token makes certain. Rows of the embedding beyond the vocabulary (padding) have none."""
    try:
        return request.decoder.push(token)
    except TokenizerError:
        return ""
