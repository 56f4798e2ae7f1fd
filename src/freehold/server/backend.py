"""What the server needs from an engine. Anything of this shape can be served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from freehold.core.clients import Client
from freehold.core.conversation import Conversation
from freehold.core.events import Event
from freehold.core.sampling import SamplingParams
from freehold.core.visuals import Placed
from freehold.model.answers.parser import AnswerParser


class Stream(Protocol):
    """One running request."""

    @property
    def request_id(self) -> str:
        """The name that the request's events carry."""
        ...

    def __aiter__(self) -> AsyncIterator[Event]:
        """The request's events; the last one is a FinishEvent, nothing follows it.

        Iterated once, on the event loop on which it was submitted. FinishEvent.error is shown to the
        operator (in the log), never to the client; it must not quote a prompt.
        """
        ...

    def cancel(self) -> None:
        """Ask the engine to stop. Callable from any thread, any number of times, also after the end.

        A cancelled stream still ends with a FinishEvent, but the server does not wait for it.
        """
        ...


class ChatPrompt(Protocol):
    """A conversation as the model gets it."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids, up to the point where the answer starts."""
        ...

    @property
    def visuals(self) -> Sequence[Placed]:
        """Images and pieces of video, with the positions of the prompt that they take."""
        ...

    def params(self, params: SamplingParams) -> SamplingParams:
        """`params` with what the conversation demands of its answer: a grammar, special tokens in the text."""
        ...

    def parser(self) -> AnswerParser:
        """A new parser for one answer."""
        ...

    def remember(self, message: Mapping[str, Any], token_ids: Sequence[int]) -> None:
        """An answer has ended: the message as the client has it, and the tokens that were sampled for it. When the
        client sends it back, it becomes those tokens again. Callable from any thread; cheap."""
        ...

    def message_ranges(self) -> Sequence[tuple[int, int]]:
        """Tokens [first, end) of each message. Costs about as much as rendering each message's beginning once."""
        ...


class Backend(Protocol):
    """One loaded model."""

    @property
    def model_name(self) -> str:
        """The name clients ask for."""
        ...

    @property
    def created(self) -> int:
        """Unix time, in seconds, of the model's file."""
        ...

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """Fields of `SamplingParams` for requests that leave them out, as the model's makers recommend; often none."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens of one request, prompt and answer."""
        ...

    @property
    def input_modalities(self) -> Sequence[str]:
        """What prompts may hold: "text", perhaps "image" and "video"."""
        ...

    def encode(self, text: str, *, special: bool, add_bos: bool | None) -> list[int]:
        """Token ids of a plain prompt. Runs in worker threads, possibly several at once.

        special: whether a special token that the text spells becomes that token; else it stays text.
        add_bos: whether the BOS token comes first; None: as the model's files say.

        Raises TokenizerError when the text cannot be encoded.
        """
        ...

    def tokenizer_info(self) -> Mapping[str, str | None]:
        """The texts of "bos_token" and "eos_token", and the "chat_template"; None for what the model does not have."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for an id that the vocabulary does not have."""
        ...

    def prepare_chat(self, conversation: Conversation, *, client: str) -> ChatPrompt:
        """The prompt of a conversation. Runs in worker threads, possibly several at once.

        client: whose conversation it is; what one client's answers were is not recognised in another's.

        Raises TemplateError when the template fails, does not know a role or refuses an argument; RequestError (or
        UnsupportedFieldError) for what the model cannot do: tools, reasoning modes, a schema that no grammar covers.
        """
        ...

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        client: Client,
        priority: int,
        provenance: bool = False,
        visuals: Sequence[Placed] = (),
    ) -> Stream:
        """Queue a request and return at once. Called on the event loop's thread, with the loop running.

        client: whom the request is for; the backend shares its time fairly between clients, see `Client`.
        priority: lower is sooner. provenance: the last event says which blocks the answer was made from.
        visuals: of the prompt, see ChatPrompt.

        Raises RequestError or a subclass (ContextLengthError, CapacityError, BusyError) when it cannot be served.
        """
        ...

    def stats(self) -> dict[str, float | int | str]:
        """Counters of the engine, by name; cheap, callable from any thread."""
        ...
