"""A model small enough to read: one token for each byte, and it answers with the prompt in capitals."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from freehold.core.errors import ContextLengthError
from freehold.core.events import Event, FinishEvent, PrefillEvent, TokenEvent, Usage
from freehold.core.sampling import SamplingParams


class FakeLLM:
    """What the commands use of `freehold.LLM`. `closed_early` counts the streams that were given up."""

    name = "fake"
    description = "fake: no weights at all"
    context_length = 200
    sampling_defaults: Mapping[str, Any] = {}
    visual_chat = None

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.params: list[SamplingParams] = []
        self.closed_early = 0
        self.options: dict[str, Any] = {}

    def encode(self, text: str) -> list[int]:
        """The text's bytes."""
        return list(text.encode())

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], tuple[()]]:
        """The bytes of one line for each message: `role: content`."""
        return self.encode("".join(f"{m['role']}: {m['content']}\n" for m in messages) + "assistant: "), ()

    def events(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, visuals: Sequence[Any] = ()
    ) -> Generator[Event, None, None]:
        """Prefill in chunks of 8, then the prompt in capitals, one byte a token."""
        total = len(prompt_ids)
        if total > self.context_length:
            raise ContextLengthError(f"the prompt has {total} tokens; the context {self.context_length}")
        self.prompts.append(bytes(prompt_ids).decode())
        self.params.append(params)
        answer = bytes(prompt_ids).upper()[: params.max_tokens]
        try:
            for done in range(8, total + 8, 8):
                yield PrefillEvent("r", min(done, total), total)
            for token_id in answer:
                yield TokenEvent("r", token_id, chr(token_id))
        except GeneratorExit:
            self.closed_early += 1
            raise
        usage = Usage(total, 4, len(answer), prefill_seconds=0.5, decode_seconds=0.25)
        yield FinishEvent("r", "length" if len(answer) < total else "stop", usage)

    def opened(self, model: str | None, engine: dict[str, Any], **_: Any) -> Any:
        """Stand in for `freehold.cli.model.opened`."""
        self.options = engine

        @contextmanager
        def open_it() -> Iterator[FakeLLM]:
            yield self

        return open_it()
