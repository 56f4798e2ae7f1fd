"""What the server needs from an engine. Anything of this shape can be served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from freehold.core.events import Event
from freehold.core.sampling import SamplingParams


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
    def context_length(self) -> int:
        """Most tokens of one request, prompt and answer."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain prompt. Runs in worker threads, possibly several at once.

        Raises TokenizerError when the text cannot be encoded.
        """
        ...

    def render_chat(self, messages: list[dict[str, Any]], /, **template_kwargs: Any) -> list[int]:
        """Token ids of a conversation, up to the point where the answer starts. Runs in worker threads,
        possibly several at once.

        messages: each has `role` (system, developer, user or assistant), `content` (a string) and
            sometimes `name` (a string).
        template_kwargs: what the client put into `chat_template_kwargs`; untrusted JSON values.

        Raises TemplateError when the template fails, does not know a role or refuses an argument.
        """
        ...

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, *, client: str, priority: int) -> Stream:
        """Queue a request and return at once. Called on the event loop's thread, with the loop running.

        client: whom the request is for; the backend shares its time fairly between clients.
        priority: lower is sooner.

        Raises RequestError or a subclass (ContextLengthError, CapacityError, BusyError) when it cannot be served.
        """
        ...

    def stats(self) -> dict[str, float | int | str]:
        """Counters of the engine, by name; cheap, callable from any thread."""
        ...
