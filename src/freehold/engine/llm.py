"""`freehold.LLM`: a model to use from Python."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

import torch

from freehold import kernels
from freehold.core.config import EngineConfig
from freehold.core.errors import ConfigError, FreeholdError, RequestError, UnsupportedFieldError
from freehold.core.events import Event, FinishEvent, FinishReason, PromptLogprobsEvent, TokenEvent, Usage
from freehold.core.logprobs import TokenLogprobs
from freehold.core.provenance import Provenance
from freehold.core.sampling import SamplingParams
from freehold.core.visuals import Placed
from freehold.engine.engine import Engine
from freehold.engine.replies import Replies
from freehold.loading.checkpoint import Checkpoint, open_checkpoint
from freehold.loading.content_digest import content_digest
from freehold.loading.pull import resolve
from freehold.model.base import BlockObserver
from freehold.model.chat import ChatFormat
from freehold.model.chat_replay import ChatEncoder
from freehold.model.chat_visuals import VisualChat, has_visuals, take_visuals
from freehold.model.compute import compute_for
from freehold.model.index_branches import index_for
from freehold.model.index_sidecar import IndexSidecar
from freehold.model.minimax_m3_mmproj import Mmproj, open_mmproj
from freehold.model.registry import load_model, load_tokenizer, load_vision, model_kind
from freehold.model.sampling_defaults import sampling_defaults


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished answer. token_ids holds every sampled token, an ending end-of-sequence token included.
    provenance: which blocks it was made from, if that was asked for.
    logprobs: one for each of token_ids; prompt_logprobs: one for each token of the prompt but the first. None if they
    were not asked for."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    provenance: Provenance | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


class LLM:
    """A loaded model with its engine. Answers that `chat_encoder` is told of are recognised when they come back;
    `replies` keeps them, with a `store_dir` also over restarts.

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
        compute, reason = compute_for(config.impl, config.activations)
        with open_checkpoint(self.path) as checkpoint:
            self.tokenizer = load_tokenizer(checkpoint)
            kind = model_kind(checkpoint)
            self.sampling_defaults = sampling_defaults(checkpoint)
            self.chat_format = ChatFormat.from_tokenizer(self.tokenizer, model_type=kind)
            index = index_for(checkpoint, config.index)
            loaded = load_model(
                checkpoint, compute, allow_dense=config.allow_dense, expert_budget=config.expert_budget, index=index
            )
            mmproj = None if config.mmproj is None else open_mmproj(config.mmproj)
            vision = load_vision(checkpoint, compute, self.tokenizer, mmproj)
            weights = "" if config.store_dir is None else _digest(checkpoint, mmproj, index)
            stored = sorted({info.dtype for info in checkpoint.tensors.values()})
        self._engine: Engine | None = Engine(loaded, self.tokenizer, config, weights=weights, vision=vision)
        self.visual_chat = None if vision is None else VisualChat.of(vision.config, self.tokenizer)
        directory = None if config.store_dir is None else Path(config.store_dir)
        self.replies = Replies(weights, directory=directory)
        self.chat_encoder = ChatEncoder(self.tokenizer, self.chat_format, self.replies)
        self._lock = threading.Lock()
        self._mail: dict[str, deque[Event]] = {}
        isa = f", {kernels.isa()}, {kernels.threads()} threads" if compute.name == "native" else ""
        if config.activations == "int8":
            isa += ", activations int8 where weights are codes"
        dense = ", sparse layers run DENSE as asked" if config.allow_dense else ""
        if index is not None:
            blocks = f"{index.sizes.topk} chosen blocks of {index.sizes.block_tokens} tokens"
            dense = f", {len(index.sparse_layers)} layers read {blocks} (index {config.index})" + dense
        self.description = f"{kind}, weights {'/'.join(stored)}, {compute.name} compute ({reason}{isa}){dense}"

    @property
    def engine(self) -> Engine:
        """The engine. Raises FreeholdError once the object is closed."""
        if self._engine is None:
            raise FreeholdError(f"the model {self.name!r} was closed; load it again with freehold.LLM({self.name!r})")
        return self._engine

    @property
    def context_length(self) -> int:
        """Most tokens of one request, prompt and answer."""
        return self.engine.context_length

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; text that looks like a special token stays text."""
        return self.tokenizer.encode(text)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> list[int]:
        """Token ids of a conversation of texts, ready for the answer. Raises TemplateError if the model has no chat
        format, UnsupportedFieldError for images; `prompt` takes them."""
        if has_visuals(_messages(messages)):
            raise UnsupportedFieldError("images need more than token ids; use chat or prompt", field="messages")
        return self.prompt(messages, **template_kwargs)[0]

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any
    ) -> tuple[list[int], tuple[Placed, ...]]:
        """Token ids of a conversation, ready for the answer, and the images and pieces of video that stand in them."""
        tools = template_kwargs.pop("tools", None)
        taken, frames = take_visuals(self.visual_chat, _messages(messages), local=True)
        ids = self.chat_encoder.encode(taken, tools=tools, template_kwargs=template_kwargs).ids
        return self.visual_chat.place(ids, frames) if self.visual_chat and frames else (ids, ())

    def events(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        provenance: bool = False,
        visuals: Sequence[Placed] = (),
    ) -> Generator[Event, None, None]:
        """Runs one request and yields what happens; ends after a FinishEvent. Closing the generator cancels it.

        Several may be open at once, in one thread or in several: each step of the engine serves all of them.
        """
        engine = self.engine
        with self._lock:
            request_id = engine.submit(prompt_ids, params, provenance=provenance, visuals=visuals)
            mine = self._mail[request_id] = deque()
        try:
            while True:
                event = self._next(engine, mine)
                yield event
                if isinstance(event, FinishEvent):
                    return
        finally:
            with self._lock:
                engine.cancel(request_id)  # does nothing if it has ended
                del self._mail[request_id]
                self._deliver(engine.end_early())

    def _next(self, engine: Engine, mine: deque[Event]) -> Event:
        """The next event of one request; steps the engine until there is one, and sorts what the steps bring."""
        while True:
            with self._lock:
                if mine:
                    return mine.popleft()
                self._deliver(engine.step())

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.request_id in self._mail:
                self._mail[event.request_id].append(event)

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: Literal[False] = False,
        provenance: bool = False,
        **sampling: Any,
    ) -> Generation: ...
    @overload
    def generate(self, prompt: str | Sequence[int], *, stream: Literal[True], **sampling: Any) -> Iterator[str]: ...
    def generate(
        self, prompt: str | Sequence[int], *, stream: bool = False, provenance: bool = False, **sampling: Any
    ) -> Generation | Iterator[str]:
        """Continues a text or token ids. sampling: the fields of `SamplingParams`; unknown ones are refused. Those that
        are left out are as the model's files say (`sampling_defaults`), and else as in `SamplingParams`.

        stream=True gives pieces of text as they become certain, otherwise a `Generation`. provenance=True has it say
        which blocks of the context each token was made from.
        """
        if isinstance(prompt, (bytes, Mapping)) or not isinstance(prompt, (str, Sequence)):
            raise RequestError(
                f"the prompt is {type(prompt).__name__}; give a text or a list of token ids", field="prompt"
            )
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self._answer(ids, stream, provenance, sampling)

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        provenance: bool = False,
        **sampling: Any,
    ) -> Generation: ...
    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **sampling: Any
    ) -> Iterator[str]: ...
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool = False, provenance: bool = False, **sampling: Any
    ) -> Generation | Iterator[str]:
        """Answers a conversation of {"role", "content"} messages, in the model's own chat format; see `generate`.

        For models that see, content may be a list of parts: {"type": "text", "text": ...}, {"type": "image",
        "image": X} and {"type": "video", "video": X}. X is a path, bytes, a data URL or a Pillow image; a video may
        be a list of them.
        """
        ids, visuals = self.prompt(messages)
        return self._answer(ids, stream, provenance, sampling, visuals)

    def _answer(
        self,
        ids: list[int],
        stream: bool,
        provenance: bool,
        sampling: dict[str, Any],
        visuals: Sequence[Placed] = (),
    ) -> Generation | Iterator[str]:
        if stream and provenance:
            raise RequestError("provenance comes with the whole answer; leave stream out", field="provenance")
        known = {f.name for f in fields(SamplingParams)}
        unknown = sorted(set(sampling) - known)
        if unknown:
            raise RequestError(f"unknown sampling fields {unknown}; known are {sorted(known)}", field=unknown[0])
        if isinstance(sampling.get("stop"), str):
            sampling["stop"] = (sampling["stop"],)
        params = SamplingParams(**{**self.sampling_defaults, **sampling})
        for name in ("logprobs", "prompt_logprobs"):
            if stream and getattr(params, name) is not None:
                raise RequestError(f"{name} come with the whole answer; leave stream out", field=name)
        self.engine.check(ids, params, visuals=visuals)
        if stream:
            return self._pieces(ids, params, visuals)
        return self._collect(ids, params, provenance, visuals)

    def _pieces(self, ids: list[int], params: SamplingParams, visuals: Sequence[Placed]) -> Iterator[str]:
        for event in self.events(ids, params, visuals=visuals):
            if isinstance(event, FinishEvent) and event.error:
                raise FreeholdError(event.error)
            if isinstance(event, (TokenEvent, FinishEvent)) and event.text:
                yield event.text

    def _collect(
        self, ids: list[int], params: SamplingParams, provenance: bool, visuals: Sequence[Placed]
    ) -> Generation:
        text, tokens = [], []
        logprobs: list[TokenLogprobs] = []
        scored: list[TokenLogprobs] = []
        for event in self.events(ids, params, provenance=provenance, visuals=visuals):
            if isinstance(event, PromptLogprobsEvent):
                scored.extend(event.logprobs)
            elif isinstance(event, TokenEvent):
                tokens.append(event.token_id)
                text.append(event.text)
                if event.logprobs is not None:
                    logprobs.append(event.logprobs)
            elif isinstance(event, FinishEvent):
                if event.error:
                    raise FreeholdError(event.error)
                text.append(event.text)
                return Generation(
                    "".join(text),
                    tuple(tokens),
                    event.reason,
                    event.usage,
                    event.provenance,
                    None if params.logprobs is None else tuple(logprobs),
                    None if params.prompt_logprobs is None else tuple(scored),
                )
        raise AssertionError("the engine ended a request without saying so")

    def logits(self, token_ids: Sequence[int], *, visuals: Sequence[Placed] = ()) -> torch.Tensor:
        """(len(token_ids), vocab_size) float32: row i predicts token i + 1. Through the engine's own path.

        visuals: what `prompt` gave beside the token ids.
        """
        with self._lock:
            return self.engine.score(token_ids, visuals=visuals)

    def selected_blocks(self, token_ids: Sequence[int]) -> dict[int, torch.Tensor]:
        """Layer -> int32 (len(token_ids), num_index_heads, topk): the blocks each token read, ascending, -1 tail."""
        chunks: dict[int, list[torch.Tensor]] = {}

        def watch(start: int) -> BlockObserver:
            return lambda layer, block_ids: chunks.setdefault(layer, []).append(block_ids)

        with self._lock:
            self.engine.score(token_ids, observer=watch)
        return {layer: torch.cat(pieces) for layer, pieces in chunks.items()}

    def close(self) -> None:
        """Frees the weights and the cache, once the block store has what it is to keep. Everything that needs them
        raises FreeholdError from now on."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        self.replies.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _digest(checkpoint: Checkpoint, mmproj: Mmproj | None, index: IndexSidecar | None) -> str:
    """What blocks in a store were made with: the text model's files, what makes rows of its images, and what chooses
    its blocks."""
    text = content_digest(checkpoint)
    others = [part.checkpoint for part in (mmproj, index) if part is not None]
    if not others:
        return text
    return hashlib.sha256(" ".join((text, *map(content_digest, others))).encode()).hexdigest()


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Plain dictionaries. Raises RequestError unless there is at least one message with a role."""
    if isinstance(messages, (str, Mapping)) or not messages:
        raise RequestError('messages must be a list like [{"role": "user", "content": "..."}]', field="messages")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise RequestError(f"messages[{number}] is {message!r}; it must have a role", field=f"messages[{number}]")
    return [dict(message) for message in messages]
