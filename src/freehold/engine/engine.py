"""The engine: `submit` requests, call `step` until they are done."""

from __future__ import annotations

import itertools
import math
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch

from freehold.cache import BlockCache
from freehold.core.clients import Client, client_of
from freehold.core.config import EngineConfig
from freehold.core.errors import (
    BusyError,
    CapacityError,
    ConfigError,
    ContextLengthError,
    LostBlocksError,
    RequestError,
    TokenizerError,
)
from freehold.core.events import Event, FinishEvent, FinishReason, PrefillEvent, PromptLogprobsEvent, TokenEvent
from freehold.core.provenance import BlockReads, Provenance
from freehold.core.sampling import SamplingParams
from freehold.core.typed import is_kind
from freehold.core.visuals import Overlay, Placed
from freehold.engine.logprobs import token_logprobs
from freehold.engine.memory import make_pool
from freehold.engine.miss_text import with_texts
from freehold.engine.request import Request
from freehold.engine.runner import Runner
from freehold.engine.sampler import Sampler
from freehold.engine.scheduler import Scheduler, Work
from freehold.engine.sight import Sight
from freehold.model.base import BlockObserver, Model, Vision
from freehold.model.detokenizer import StopMatcher, StreamDecoder
from freehold.model.grammar import Grammars
from freehold.model.tokenizer import Tokenizer

_LEAST_RETRY_SECONDS, _MOST_RETRY_SECONDS = 1.0, 600.0
_LEAST_LOOK_SECONDS = 0.01
"""Of a step, for images: as long as the answers' own part of it, if that is longer."""
_NOT_FINITE = "the model's logits are not finite; the weights may be damaged"


class Engine:
    """Runs requests over one model, in batches, with a shared block cache. Not safe for several threads."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        config: EngineConfig,
        *,
        weights: str = "",
        vision: Vision | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """weights: digest of the checkpoint, which a block store needs to know its blocks by. vision: makes images
        into rows of a prompt, if `model` is one that sees."""
        if config.store_dir is not None and not weights:
            raise ConfigError("store_dir is given without the digest of the weights; blocks would have no owner")
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.context_length = config.context_length or model.context_length
        if self.context_length > model.context_length:
            raise ConfigError(
                f"context_length is {self.context_length}; the model was made for {model.context_length} tokens"
            )
        self._clock = clock
        self._numbers = itertools.count()
        self.cache = BlockCache(make_pool(model, config, self.context_length, weights))
        self.runner = Runner(model, self.cache)
        self.sight = Sight(vision)
        self.scheduler = Scheduler(config, self.cache, self.sight.ready_tokens)
        self.grammars = Grammars(tokenizer, model.vocab_size)
        self._requests: dict[str, Request] = {}

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._requests)

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        client: str | Client = (),
        priority: int = 0,
        provenance: bool = False,
        visuals: Sequence[Placed] = (),
    ) -> str:
        """Queues a request and returns its id.

        client: a name, or several from the outermost to the innermost, as a key and its user; the engine's time is
        shared between the outermost, and what each gets between those inside of it.

        priority: lower is served sooner, and a more important request may take the room of a less important one.

        provenance: the last event says which blocks the sparse layers read for each token.

        visuals: images and pieces of video, with the positions of the prompt that they take.

        Raises RequestError for tokens that do not exist or a grammar that is none, ContextLengthError if the prompt and
        one token exceed the context, CapacityError if the whole request can never fit into the cache, BusyError if the
        queue is full.
        """
        prompt = list(prompt_ids)
        self.check(prompt, params, visuals=visuals)
        request_id = request_id or uuid.uuid4().hex
        if request_id in self._requests:
            raise RequestError(f"request id {request_id!r} is in use; choose another", field="request_id")
        limit = min(self.context_length, self._capacity(params))
        total = limit if params.max_tokens is None else min(limit, len(prompt) + params.max_tokens)
        now, most = self._clock(), self.config.timeout_seconds
        request = Request(
            request_id=request_id,
            number=next(self._numbers),
            client=client_of(client),
            priority=priority,
            submitted=now,
            deadline=math.inf if most is None else now + most,
            prompt_len=len(prompt),
            tokens=prompt,
            max_total_tokens=total,
            params=params,
            sampler=Sampler(params),
            decoder=StreamDecoder(self.tokenizer, skip_special=params.skip_special_tokens),
            stops=StopMatcher(params.stop),
            matcher=None if params.grammar is None else self.grammars.matcher(params.grammar),
            reads=[] if provenance else None,
            visuals=tuple(visuals),
        )
        self._requests[request_id] = request
        self.scheduler.add(request)
        return request_id

    def check(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        coming: Sequence[int] = (),
        visuals: Sequence[Placed] = (),
    ) -> None:
        """Raises the errors of `submit`, without submitting. coming: prompt lengths of requests on their way to the
        queue. May be called from any thread."""
        if not prompt:
            raise RequestError("the prompt is empty; send at least one token", field="prompt")
        for name, ids in (
            ("prompt", prompt),
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
        ):
            self._check_ids(name, ids)
        self.sight.check(prompt, visuals)
        wanted = 1 if params.max_tokens is None else params.max_tokens
        if len(prompt) + min(wanted, 1) > self.context_length:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens; "
                f"the context is {self.context_length} tokens, the answer included",
                field="prompt",
            )
        needed = min(self.context_length, len(prompt) + wanted)
        self._check_capacity(len(prompt), needed, params)
        self._check_room(len(prompt), coming)
        if params.grammar is not None:
            self.grammars.check(params.grammar)

    def _check_capacity(self, prompt_len: int, needed: int, params: SamplingParams) -> None:
        """Whether a whole request fits into the cache."""
        if needed > self.cache.capacity_tokens:
            raise CapacityError(
                f"the request needs {needed} tokens of cache (prompt {prompt_len}); the cache holds "
                f"{self.cache.capacity_tokens}. Lower max_tokens, or start with a larger cache_tokens",
                field="max_tokens",
            )
        if needed > self._capacity(params):
            raise CapacityError(
                f"the request needs {needed} tokens of cache (prompt {prompt_len}); with prompt_logprobs all of them "
                f"stay in RAM, which holds {self._capacity(params)}. Leave prompt_logprobs out, or start with a larger "
                "ram_budget",
                field="prompt_logprobs",
            )

    def _capacity(self, params: SamplingParams) -> int:
        """Most tokens of one request in the cache. Those of a prompt that is not shared are never on the disk."""
        shared = params.prompt_logprobs is None
        return self.cache.capacity_tokens if shared else self.cache.unshared_capacity_tokens

    def _check_room(self, prompt_len: int, coming: Sequence[int]) -> None:
        """Whether the queue takes another request."""
        waiting = len(self.scheduler.waiting) + len(coming)
        tokens = self.scheduler.num_prompt_tokens + sum(coming)
        if waiting >= self.config.max_waiting:
            why = f"{waiting} requests are waiting already"
        elif tokens and tokens + prompt_len > self.config.max_prompt_tokens:
            why = (
                f"the prompt has {prompt_len} tokens, those of other requests {tokens}; "
                f"together at most {self.config.max_prompt_tokens} are taken"
            )
        else:
            return
        seconds = min(max(self.scheduler.seconds_ahead(), _LEAST_RETRY_SECONDS), _MOST_RETRY_SECONDS)
        raise BusyError(f"{why}; try again in about {math.ceil(seconds)} seconds", retry_seconds=seconds)

    def _check_ids(self, name: str, ids: Collection[int]) -> None:
        size = self.model.vocab_size
        if {*map(type, ids)} == {int} and min(ids) >= 0 and max(ids) < size:  # all at once: there may be a million
            return
        for token in ids:
            if not is_kind(token, int) or not 0 <= token < size:
                raise RequestError(f"{name} has token id {token!r}; the vocabulary has {size} tokens", field=name)

    def cancel(self, request_id: str) -> None:
        """The request ends at the next step or `end_early`. Unknown or ended requests are ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            request.cancelled = True

    def step(self) -> list[Event]:
        """Computes one batch and reports what happened; one call is one forward pass of the model."""
        events = self.end_early()
        self.cache.poll()
        self.sight.look(self.scheduler.running, max(self.scheduler.pace.decode_seconds, _LEAST_LOOK_SECONDS))
        plan = self.scheduler.plan()
        if not plan:
            return events
        overlay = self.sight.overlay(plan)
        began = self._clock()  # what it takes to look says nothing about the pace of tokens
        try:
            logits = self._forward(plan, overlay)
        except LostBlocksError as lost:
            self.cache.forget(lost.slots)  # the next step computes them again
            return events
        except CapacityError as error:  # within a ram_budget, blocks that are not on the disk cannot leave the memory
            if not self.scheduler.give_way():
                events += [self._finish(work.request, "error", error=str(error)) for work in plan]
            return events
        for work, rows in zip(plan, logits, strict=True):
            request = work.request
            if not np.isfinite(rows).all():
                events.append(self._finish(request, "error", error=_NOT_FINITE))
                continue
            events.extend(_prompt_logprobs(work, rows))
            if work.last:
                events.extend(self._advance(request, rows[-1]))
            else:
                events.append(PrefillEvent(request.request_id, work.start + work.length, request.prompt_len))
        self.scheduler.observe(plan, self._clock() - began)
        return events

    def end_early(self) -> list[Event]:
        """Ends requests that were cancelled, or that are late, and computes nothing. `step` begins with it."""
        now = self._clock()
        late = f"the request was not done after {self.config.timeout_seconds} seconds, the limit here"
        ended: list[Event] = []
        for request in list(self.scheduler):
            if request.cancelled:
                ended.append(self._finish(request, "cancelled"))
            elif now >= request.deadline:
                ended.append(self._finish(request, "timeout", error=f"{late}; sent again, it goes on from there"))
        return ended

    def _forward(self, plan: list[Work], overlay: Overlay | None) -> list[np.ndarray]:
        """For each work the logits (rows, vocab_size) that it wants: of prompt tokens, and of the row that samples."""
        pieces, rows, counts = [], [], []
        watched: dict[int, Request] = {}
        base = 0
        for work in plan:
            request, end = work.request, work.start + work.length
            assert request.sequence is not None
            if request.started is None:
                request.started = self._clock()
            pieces.append((request.sequence, work.start, work.length))
            wanted = [*request.scored_rows(work.start, end), *([end - 1] if work.last else [])]
            rows += [base + position - work.start for position in wanted]
            counts.append(len(wanted))
            base += work.length
            if work.last and request.reads is not None:
                watched[base - 1] = request
        logits = self.runner.run(pieces, rows, ReadsObserver(watched) if watched else None, overlay).numpy()
        return np.split(logits, np.cumsum(counts)[:-1])

    def _advance(self, request: Request, logits: np.ndarray) -> list[Event]:
        """Samples a request's next token and says what became of it."""
        tokens, matcher = request.tokens, request.matcher
        if request.first_token is None:
            request.first_token = self._clock()
        if len(tokens) >= request.max_total_tokens:  # only its prompt was asked about
            return [self._finish(request, "length")]
        try:
            allowed = None if matcher is None else matcher.allowed()
        except RequestError as error:
            return [self._finish(request, "error", refusal=str(error))]
        if matcher is not None and allowed is not None and not len(allowed):
            if matcher.may_end:
                return [self._finish(request, "stop", flush=True)]
            return [self._finish(request, "error", error="no token of the vocabulary goes on with the grammar")]
        token = request.sampler.sample(logits, tokens, request.prompt_len, allowed)
        tokens.append(token)
        assert request.sequence is not None
        request.sequence.tokens.append(token)
        return self._after(request, token, logits)

    def _after(self, request: Request, token: int, logits: np.ndarray) -> list[Event]:
        """What a token that was just sampled means: its text, and whether the answer ends with it."""
        params = request.params
        logprobs = None if params.logprobs is None else token_logprobs(logits, token, params.logprobs)
        if token in params.stop_token_ids or (token in self.tokenizer.eos_ids and not params.ignore_eos):
            event = TokenEvent(request.request_id, token, "", logprobs)
            return [event, self._finish(request, "stop", flush=True)]
        text, stopped = request.stops.push(_text_of(request, token))
        event = TokenEvent(request.request_id, token, text, logprobs)
        if stopped:
            return [event, self._finish(request, "stop")]
        if request.matcher is not None:
            try:
                request.matcher.push(token)
            except RequestError as error:
                return [event, self._finish(request, "error", refusal=str(error))]
            if request.matcher.is_done:
                return [event, self._finish(request, "stop", flush=True)]
        if len(request.tokens) >= request.max_total_tokens:
            return [event, self._finish(request, "length", flush=True)]
        return [event]

    def _finish(
        self,
        request: Request,
        reason: FinishReason,
        *,
        flush: bool = False,
        error: str | None = None,
        refusal: str | None = None,
    ) -> FinishEvent:
        """Ends a request. With `flush`, text that was held back belongs to the answer."""
        text = ""
        if flush:
            text, stopped = request.stops.push(request.decoder.flush())
            text += "" if stopped else request.stops.flush()
        self.scheduler.remove(request)
        del self._requests[request.request_id]
        reads = None if request.reads is None else Provenance(self.cache.block_tokens, tuple(request.reads))
        stop_text = request.stops.matched if reason == "stop" else None
        if request.miss is not None:
            request.miss = with_texts(request.miss, self.tokenizer)
        usage = request.usage(self._clock())
        return FinishEvent(request.request_id, reason, usage, text, error or refusal, reads, stop_text, refusal)

    def close(self) -> None:
        """Waits until the block store has everything, and lets go of it."""
        self.cache.close_store()

    def abort_all(self, error: str) -> list[Event]:
        """Ends every request with an error; for a step that failed."""
        return [self._finish(request, "error", error=error) for request in list(self.scheduler)]

    def score(
        self,
        token_ids: Sequence[int],
        *,
        observer: Callable[[int], BlockObserver] | None = None,
        visuals: Sequence[Placed] = (),
    ) -> torch.Tensor:
        """Logits (len, vocab_size) float32 of every position of a given text, by the path that answers take:
        in chunks, through the cache. Finds and keeps no prefix. The engine must be idle.

        observer: called with each chunk's first position, gives the chunk's block observer.
        """
        if self.busy:
            raise RequestError("the engine is answering a request; score a text before or after it")
        self._check_ids("token_ids", token_ids)
        self.sight.check(token_ids, visuals)
        if len(token_ids) > min(self.context_length, self.cache.unshared_capacity_tokens):
            raise ContextLengthError(
                f"{len(token_ids)} tokens; the context is {self.context_length} and the cache holds "
                f"{self.cache.unshared_capacity_tokens} tokens in RAM"
            )
        sequence = self.cache.open(token_ids, share=False)
        pieces = []
        try:
            for start in range(0, len(token_ids), self.config.prefill_chunk):
                length = min(self.config.prefill_chunk, len(token_ids) - start)
                if not self.cache.reserve(sequence, start + length):
                    raise CapacityError(f"no room in the cache for {start + length} tokens")
                watch = None if observer is None else observer(start)
                overlay = self.sight.lay([(token_ids, visuals, start, length)]) if visuals else None
                pieces.append(self.runner.run([(sequence, start, length)], range(length), watch, overlay))
        finally:
            self.cache.close(sequence)
        return torch.cat(pieces)


class ReadsObserver:
    """A `BlockObserver` that notes what the rows of some requests read."""

    def __init__(self, requests: Mapping[int, Request]) -> None:
        """requests: by the row that predicts their next token."""
        self._requests = requests
        for request in requests.values():
            assert request.reads is not None
            position = len(request.tokens) - 1
            if request.reads and request.reads[-1].position == position:  # of a step that met a lost block
                request.reads.pop()
            request.reads.append(BlockReads(position, {}))

    def __call__(self, layer: int, block_ids: torch.Tensor) -> None:
        for row, request in self._requests.items():
            assert request.reads is not None
            heads = block_ids[row].tolist()
            request.reads[-1].layers[layer] = tuple(tuple(b for b in blocks if b >= 0) for blocks in heads)


def _prompt_logprobs(work: Work, rows: np.ndarray) -> list[Event]:
    """What a work's logits say about the prompt, if that was asked for."""
    request, tokens = work.request, work.request.tokens
    scored = request.scored_rows(work.start, work.start + work.length)
    if request.params.prompt_logprobs is None or not scored:
        return []
    num_top = request.params.prompt_logprobs
    values = [token_logprobs(row, tokens[i + 1], num_top) for i, row in zip(scored, rows, strict=False)]
    request.num_scored = scored.stop
    return [PromptLogprobsEvent(request.request_id, scored.start + 1, tuple(values))]


def _text_of(request: Request, token: int) -> str:
    """The text that a token makes certain. Rows of the embedding beyond the vocabulary (padding) have none."""
    try:
        return request.decoder.push(token)
    except TokenizerError:
        return ""
