"""A backend without a model: tokens are the bytes of a text, and answers follow a script."""

from __future__ import annotations

import asyncio
import codecs
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from freehold.core.clients import Client
from freehold.core.conversation import Conversation
from freehold.core.errors import BusyError, ContextLengthError, RequestError, TemplateError
from freehold.core.events import Event, FinishEvent, FinishReason, Miss, PrefillEvent, TokenEvent, Usage
from freehold.core.sampling import SamplingParams
from freehold.core.visuals import Placed
from freehold.model.answers.parser import AnswerParser
from freehold.model.answers.plain import PlainParser
from freehold.model.chat_visuals import take_visuals


@dataclass(frozen=True)
class Script:
    """What happens to one request.

    tokens: the bytes of each token of the answer. A character may be spread over several.
    prefill: seconds before the first token, spent in `prefill_steps` steps; delay: seconds before each token.
    reason, error: how it ends after the last token. crash: raised by the iterator instead of an end.
    stop_text: the stop text that ends it. refusal: see FinishEvent. miss: see Usage.
    """

    tokens: Sequence[bytes] = (b"Hello", b", ", b"world")
    prefill: float = 0.0
    prefill_steps: int = 1
    delay: float = 0.0
    reason: FinishReason = "stop"
    error: str | None = None
    crash: Exception | None = None
    stop_text: str | None = None
    refusal: str | None = None
    miss: Miss | None = None


@dataclass
class FakeStream:
    request_id: str
    prompt_ids: Sequence[int]
    params: SamplingParams
    script: Script
    cached_tokens: int = 0
    client: Client = ()
    priority: int = 0
    cancel_calls: int = 0
    ended: bool = False
    _cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def cancel(self) -> None:
        self.cancel_calls += 1
        self._cancelled.set()

    @property
    def was_cut_short(self) -> bool:
        """Cancelled before its end, which is what saves work."""
        return self.cancel_calls > 0 and not self.ended

    async def __aiter__(self) -> AsyncIterator[Event]:
        total, steps = len(self.prompt_ids), self.script.prefill_steps
        for step in range(1, steps + 1):
            await self._sleep(self.script.prefill / steps)
            yield PrefillEvent(self.request_id, total * step // steps, total)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        count = 0
        reason = self.script.reason
        for token in self.script.tokens:
            if self.params.max_tokens is not None and count == self.params.max_tokens:
                reason = "length"
                break
            await self._sleep(self.script.delay)
            if self._cancelled.is_set():
                reason = "cancelled"
                break
            count += 1
            yield TokenEvent(self.request_id, token[0], decoder.decode(token))
        if self.script.crash is not None:
            raise self.script.crash
        self.ended = reason != "cancelled"
        usage = Usage(total, self.cached_tokens, count, miss=self.script.miss)
        text, stop_text = decoder.decode(b"", final=True), self.script.stop_text if reason == "stop" else None
        yield FinishEvent(
            self.request_id, reason, usage, text, self.script.error, stop_text=stop_text, refusal=self.script.refusal
        )

    async def _sleep(self, seconds: float) -> None:
        if seconds:
            try:
                await asyncio.wait_for(self._cancelled.wait(), seconds)
            except asyncio.TimeoutError:
                return
        else:
            await asyncio.sleep(0)


@dataclass
class FakeChat:
    """See `freehold.server.backend.ChatPrompt`."""

    backend: FakeBackend
    head: bytes
    lines: list[bytes]
    client: str

    visuals: Sequence[Placed] = ()

    @property
    def ids(self) -> list[int]:
        return list(self.head + b"".join(self.lines))

    def params(self, params: SamplingParams) -> SamplingParams:
        return params

    def parser(self) -> AnswerParser:
        return self.backend.parser()

    def remember(self, message: Mapping[str, Any], token_ids: Sequence[int]) -> None:
        self.backend.remembered.append((self.client, message, list(token_ids)))

    def message_ranges(self) -> list[tuple[int, int]]:
        ends = list(itertools.accumulate(map(len, self.lines), initial=len(self.head)))
        return list(itertools.pairwise(ends))


class FakeBackend:
    """See Script. `script` may also be a function of the prompt's text and the sampling fields."""

    def __init__(
        self,
        script: Script | Callable[[str, SamplingParams], Script] = Script(),
        *,
        context_length: int = 4096,
        capacity: int = 1000,
        cached_tokens: int = 0,
        retry_seconds: float = 1.0,
        parser: Callable[[], AnswerParser] = PlainParser,
        sampling_defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.sampling_defaults = sampling_defaults or {}
        self.input_modalities = ["text"]
        self.model_name = "fake/model"
        self.created = 1_700_000_000
        self.context_length = context_length
        self.streams: list[FakeStream] = []
        self.messages: list[Mapping[str, Any]] = []
        self.conversations: list[Conversation] = []
        self.remembered: list[tuple[str, Mapping[str, Any], list[int]]] = []
        self.parser = parser
        self._script = script
        self._capacity = capacity
        self._retry_seconds = retry_seconds
        self._cached_tokens = cached_tokens
        self._ids = itertools.count()

    def encode(self, text: str, *, special: bool, add_bos: bool | None) -> list[int]:
        """A special token is a byte of its own: 2 is BOS, 3 is EOS."""
        data = text.encode()
        if special:
            data = data.replace(b"<bos>", b"\x02").replace(b"<eos>", b"\x03")
        return list(b"\x02" + data if add_bos else data)

    def tokenizer_info(self) -> dict[str, str | None]:
        return {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": None}

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""

    def prepare_chat(self, conversation: Conversation, *, client: str) -> FakeChat:
        """`role: content` lines; keyword arguments come first, as `name=value;`."""
        self.messages = list(take_visuals(None, conversation.messages, local=False)[0])
        self.conversations.append(replace(conversation, messages=self.messages))
        if conversation.template_kwargs.get("explode"):
            raise TemplateError("the chat template failed: it was asked to")
        head = "".join(f"{name}={value};" for name, value in conversation.template_kwargs.items())
        lines = [f"{m['role']}: {m['content']}\n".encode() for m in self.messages]
        return FakeChat(self, head.encode(), lines, client)

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        client: Client,
        priority: int,
        provenance: bool = False,
        visuals: Sequence[Placed] = (),
    ) -> FakeStream:
        if max(prompt_ids) > 255:
            raise RequestError(f"token id {max(prompt_ids)} is not in the vocabulary of 256", field="prompt")
        if len(prompt_ids) >= self.context_length:
            raise ContextLengthError(f"{len(prompt_ids)} tokens; the context holds {self.context_length}")
        if len(self.streams) >= self._capacity:
            raise BusyError(f"{self._capacity} requests wait already", retry_seconds=self._retry_seconds)
        text = bytes(prompt_ids).decode(errors="replace")
        script = self._script if isinstance(self._script, Script) else self._script(text, params)
        stream = FakeStream(f"r{next(self._ids)}", prompt_ids, params, script, self._cached_tokens, client, priority)
        self.streams.append(stream)
        return stream

    def stats(self) -> dict[str, float | int | str]:
        return {"requests": len(self.streams)}

    def prompt(self, index: int) -> str:
        """The text of the request number `index`."""
        return bytes(self.streams[index].prompt_ids).decode()
