"""One request, from submission to its last event."""

from __future__ import annotations

from dataclasses import dataclass

from freehold.cache import Sequence
from freehold.core.clients import Client
from freehold.core.events import Miss, Usage
from freehold.core.provenance import BlockReads
from freehold.core.sampling import SamplingParams
from freehold.core.visuals import Placed, content_keys
from freehold.engine.sampler import Sampler
from freehold.model.detokenizer import StopMatcher, StreamDecoder
from freehold.model.grammar import GrammarMatcher


@dataclass(slots=True, eq=False)
class Request:
    """State of one request. `tokens` is the prompt and everything sampled so far.

    number counts requests in the order they came. client is whom the request is for, and priority how important it
    is (lower is more); see `Scheduler`. Times are in seconds of the engine's clock; from `deadline` on it is late.
    sequence is None while the request waits. A request that lost its room waits again with all its tokens;
    its text goes on where it stopped. reads collects the blocks that its tokens come from, if that was asked for.
    The logits of the first `num_scored` tokens are not wanted (any more) for log-probabilities of the prompt.
    visuals: images and pieces of video that stand in the prompt.
    """

    request_id: str
    number: int
    client: Client
    priority: int
    submitted: float
    deadline: float
    prompt_len: int
    tokens: list[int]
    max_total_tokens: int
    params: SamplingParams
    sampler: Sampler
    decoder: StreamDecoder
    stops: StopMatcher
    matcher: GrammarMatcher | None = None
    num_scored: int = 0
    sequence: Sequence | None = None
    cancelled: bool = False
    cached_tokens: int = 0
    miss: Miss | None = None
    times_paused: int = 0
    times_overtaken: int = 0
    started: float | None = None
    first_token: float | None = None
    reads: list[BlockReads] | None = None
    visuals: tuple[Placed, ...] = ()

    def __post_init__(self) -> None:
        if self.params.prompt_logprobs is None:
            self.num_scored = self.prompt_len - 1

    @property
    def shares(self) -> bool:
        """Whether it may take over blocks; a prompt whose every logit is wanted has to be computed."""
        return self.params.prompt_logprobs is None

    @property
    def cache_tokens(self) -> list[int]:
        """The tokens as the block cache knows them: images go by what they show."""
        return content_keys(self.tokens, self.visuals) if self.visuals else self.tokens

    def scored_rows(self, start: int, end: int) -> range:
        """Of tokens [start, end), those whose logits give log-probabilities of the prompt that were not yet said."""
        first = max(start, self.num_scored)
        return range(first, max(first, min(end, self.prompt_len - 1)))

    @property
    def num_generated(self) -> int:
        """Tokens sampled so far."""
        return len(self.tokens) - self.prompt_len

    @property
    def num_uncomputed(self) -> int:
        """Tokens that are not in the cache yet; one while decoding."""
        assert self.sequence is not None
        return len(self.tokens) - self.sequence.num_computed

    def found(self, tokens: int) -> None:
        """So many tokens more need not be computed. What it finds again after a pause was its own work."""
        if self.times_paused == 0:
            self.cached_tokens = min(self.cached_tokens + tokens, self.prompt_len)

    def usage(self, now: float) -> Usage:
        """Counts and times up to now."""
        started = self.started if self.started is not None else now
        first = self.first_token if self.first_token is not None else now
        return Usage(
            prompt_tokens=self.prompt_len,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.num_generated,
            queued_seconds=started - self.submitted,
            prefill_seconds=first - started,
            decode_seconds=now - first,
            miss=self.miss,
        )
