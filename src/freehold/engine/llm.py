"""`freehold.LLM`: a model to use from Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

import torch

from freehold import kernels
from freehold.core.config import EngineConfig
from freehold.core.errors import ConfigError, FreeholdError, RequestError
from freehold.core.events import Event, FinishEvent, FinishReason, TokenEvent, Usage
from freehold.core.sampling import SamplingParams
from freehold.engine.engine import Engine
from freehold.loading.checkpoint import open_checkpoint
from freehold.loading.pull import resolve
from freehold.model.base import BlockObserver
from freehold.model.chat import ChatFormat
from freehold.model.compute import compute_for
from freehold.model.registry import load_model, load_tokenizer


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished answer. token_ids holds every sampled token, an ending end-of-sequence token included."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage


class LLM:
    """A loaded model with its engine.

    model: a pulled name, a directory or a .gguf file. options: the fields of `EngineConfig`.
    Raises ModelNotFoundError, LoadError or ConfigError. Use it as a context manager, or call `close`.
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        known = {f.name for f in fields(EngineConfig)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ConfigError(f"unknown options {unknown}; known are {sorted(known)}")
        config = EngineConfig(**options)
        if config.threads is not None:
            kernels.set_threads(config.threads)
        self.path = resolve(str(model))
        self.name = Path(model).stem if Path(model).exists() else str(model)
        compute, reason = compute_for(config.impl)
        with open_checkpoint(self.path) as checkpoint:
            self.tokenizer = load_tokenizer(checkpoint)
            kind = checkpoint.config.get("model_type") or checkpoint.config.get("general.architecture")
            self.chat_format = ChatFormat.from_tokenizer(self.tokenizer, model_type=kind)
            self._model = load_model(checkpoint, compute, allow_dense=config.allow_dense)
            stored = sorted({info.dtype for info in checkpoint.tensors.values()})
        self.engine = Engine(self._model, self.tokenizer, config)
        isa = f", {kernels.isa()}, {kernels.threads()} threads" if compute.name == "native" else ""
        self.description = f"{kind}, weights {'/'.join(stored)}, {compute.name} compute ({reason}{isa})"

    @property
    def context_length(self) -> int:
        """Most tokens of one request, prompt and answer."""
        return self.engine.context_length

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; text that looks like a special token stays text."""
        return self.tokenizer.encode(text)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> list[int]:
        """Token ids of a conversation, ready for the answer. Raises TemplateError if the model has no chat format."""
        text = self.chat_format.render([dict(m) for m in messages], **template_kwargs)
        return self.tokenizer.encode(text, allow_special=True, add_bos=False)

    def events(self, prompt_ids: Sequence[int], params: SamplingParams) -> Iterator[Event]:
        """Runs one request and yields what happens; ends after a FinishEvent. Closing the iterator cancels it."""
        request_id = self.engine.submit(prompt_ids, params)
        ended = False
        try:
            while not ended:
                for event in self.engine.step():
                    if event.request_id == request_id:
                        ended = isinstance(event, FinishEvent)
                        yield event
        finally:
            if not ended:
                self.engine.cancel(request_id)
                self.engine.step()

    @overload
    def generate(
        self, prompt: str | Sequence[int], *, stream: Literal[False] = False, **sampling: Any
    ) -> Generation: ...
    @overload
    def generate(self, prompt: str | Sequence[int], *, stream: Literal[True], **sampling: Any) -> Iterator[str]: ...
    def generate(
        self, prompt: str | Sequence[int], *, stream: bool = False, **sampling: Any
    ) -> Generation | Iterator[str]:
        """Continues a text or token ids. sampling: the fields of `SamplingParams`; unknown ones are refused.

        stream=True gives pieces of text as they become certain, otherwise a `Generation`.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self._answer(ids, stream, sampling)

    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[False] = False, **sampling: Any
    ) -> Generation: ...
    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **sampling: Any
    ) -> Iterator[str]: ...
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool = False, **sampling: Any
    ) -> Generation | Iterator[str]:
        """Answers a conversation of {"role", "content"} messages, in the model's own chat format."""
        return self._answer(self.render_chat(messages), stream, sampling)

    def _answer(self, ids: list[int], stream: bool, sampling: dict[str, Any]) -> Generation | Iterator[str]:
        known = {f.name for f in fields(SamplingParams)}
        unknown = sorted(set(sampling) - known)
        if unknown:
            raise RequestError(f"unknown sampling fields {unknown}; known are {sorted(known)}", field=unknown[0])
        if isinstance(sampling.get("stop"), str):
            sampling["stop"] = (sampling["stop"],)
        params = SamplingParams(**sampling)
        self.engine.check(ids, params)
        return self._pieces(ids, params) if stream else self._collect(ids, params)

    def _pieces(self, ids: list[int], params: SamplingParams) -> Iterator[str]:
        for event in self.events(ids, params):
            if isinstance(event, FinishEvent) and event.error:
                raise FreeholdError(event.error)
            if isinstance(event, (TokenEvent, FinishEvent)) and event.text:
                yield event.text

    def _collect(self, ids: list[int], params: SamplingParams) -> Generation:
        text, tokens = [], []
        for event in self.events(ids, params):
            if isinstance(event, TokenEvent):
                tokens.append(event.token_id)
                text.append(event.text)
            elif isinstance(event, FinishEvent):
                if event.error:
                    raise FreeholdError(event.error)
                text.append(event.text)
                return Generation("".join(text), tuple(tokens), event.reason, event.usage)
        raise AssertionError("the engine ended a request without saying so")

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """(len(token_ids), vocab_size) float32: row i predicts token i + 1. Through the engine's own path."""
        return self.engine.score(token_ids)

    def selected_blocks(self, token_ids: Sequence[int]) -> dict[int, torch.Tensor]:
        """Layer -> int32 (len(token_ids), num_index_heads, topk): the blocks each token read, ascending, -1 tail."""
        chunks: dict[int, list[torch.Tensor]] = {}

        def watch(start: int) -> BlockObserver:
            return lambda layer, block_ids: chunks.setdefault(layer, []).append(block_ids)

        self.engine.score(token_ids, observer=watch)
        return {layer: torch.cat(pieces) for layer, pieces in chunks.items()}

    def close(self) -> None:
        """Frees the weights and the cache. The object must not be used afterwards."""
        self.__dict__.pop("engine", None)
        self.__dict__.pop("_model", None)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
