"""A request's body -> JSON value and class, beside the event loop, and never longer than it may take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pydantic_core

from freehold.core.errors import RequestError
from freehold.governance.policy.classes import DataClass
from freehold.governance.policy.classify import FAILED, Classification, Classifier, unreadable
from freehold.server.json_body import decode_json

# A detector that hangs keeps its thread; when all hang, every class is unknown.
_THREADS = 16
_GRACE_SECONDS = 0.25
# Looked through in less time than a thread costs others; about two milliseconds.
_SHORT_BYTES = 4096


@dataclass(slots=True)
class Taken:
    """What became of a body. value: None where it is no JSON object; wrong: then says why."""

    value: dict[str, Any] | None = None
    found: Classification | None = None
    wrong: RequestError | None = None


class Intake:
    """Threads in which bodies are read and looked through."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="freehold-intake")

    async def take(
        self, body: bytes, classifier: Classifier, *, client: str, declared: DataClass | None, extra: Sequence[str]
    ) -> Taken:
        """Read a body and find its class. What takes too long is "unknown"."""
        taken = Taken()

        def read() -> None:
            try:
                value = decode_json(body)
                if not isinstance(value, dict):
                    raise RequestError("the request body must be a JSON object")
            except RequestError as error:
                taken.wrong = error
                return
            taken.value = value
            taken.found = classifier.classify(value, client=client, declared=declared, extra=extra)

        if len(body) <= _SHORT_BYTES and classifier.is_prompt:
            read()
            return self._taken(taken)
        running = asyncio.get_running_loop().run_in_executor(self._pool, read)
        done, _ = await asyncio.wait([running], timeout=classifier.settings.seconds + _GRACE_SECONDS)
        if done:
            running.result()
        return self._taken(taken)

    def _taken(self, taken: Taken) -> Taken:
        """What is there by now: a thread that is late may go on writing to its own copy."""
        found, value, wrong = taken.found, taken.value, taken.wrong
        if wrong is None and value is None:
            wrong = RequestError("the request body could not be read in time")
        if found is None:
            found = unreadable(f"{FAILED}time" if wrong is None else f"{FAILED}reading")
        return Taken(value, found, wrong)

    def close(self) -> None:
        """Wait for nobody."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def encoded(value: dict[str, Any], model: str) -> bytes:
    """What is sent: the value that was looked through, never the bytes that came, under the endpoint's name of the
    model. Two parsers may read the same bytes differently."""
    return pydantic_core.to_json({**value, "model": model}, inf_nan_mode="constants")
