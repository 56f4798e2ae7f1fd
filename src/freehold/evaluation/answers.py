"""Who is asked: a model here, or whatever answers behind an OpenAI-compatible address."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Protocol

from freehold.core.errors import ArgumentError, FreeholdError
from freehold.core.printable import printable
from freehold.engine.llm import LLM

_TIMEOUT = 3600.0


_MOST_BYTES = 2**28
"""Of an answer."""
_BAD_ANSWERS = (
    OSError, http.client.HTTPException, LookupError, ValueError, TypeError, AttributeError, RecursionError,
)  # fmt: skip
_ROUNDING = 1e-3
"""By which a logarithm of a probability may be above 0."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is for the address that was given, and for no other."""

    def redirect_request(self, *_args: Any) -> None:
        """None: the answer stands as it is, with its status."""


_OPENER = urllib.request.build_opener(_NoRedirects)


class Asked(Protocol):
    """Continues prompts."""

    def count(self, text: str) -> int:
        """Tokens of the text."""

    def answer(self, prompt: str, max_tokens: int) -> str:
        """What comes after the prompt, greedily."""


class LocalModel:
    """A model that runs here."""

    def __init__(self, model: str | Path, **options: Any) -> None:
        self._llm = LLM(model, **options)

    def count(self, text: str) -> int:
        """See `Asked`."""
        return len(self._llm.encode(text))

    def answer(self, prompt: str, max_tokens: int) -> str:
        """See `Asked`."""
        return self._llm.generate(prompt, max_tokens=max_tokens, temperature=0.0).text

    @property
    def context_length(self) -> int:
        """Tokens of the longest prompt and its answer."""
        return self._llm.context_length

    def close(self) -> None:
        """Frees the model."""
        self._llm.close()


class Endpoint:
    """A server with /v1/completions. A token is taken for four characters: the server's own count differs."""

    def __init__(self, url: str, model: str, key: str | None = None) -> None:
        """url: up to and with /v1. Raises ArgumentError if it is none, or the key cannot stand in a header."""
        if not url.lower().startswith(("http://", "https://")):
            raise ArgumentError(f"url is {url!r}; it must begin with http:// or https://")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ArgumentError("the API key has characters that no header takes; look at OPENAI_API_KEY or --api-key")
        self.url, self._model, self._key = url.rstrip("/"), model, key

    def count(self, text: str) -> int:
        """See `Asked`."""
        return (len(text) + 3) // 4

    def answer(self, prompt: str, max_tokens: int) -> str:
        """See `Asked`. Raises FreeholdError if the server does not answer."""
        text = self._complete(prompt=prompt, max_tokens=max_tokens, temperature=0)["text"]
        if not isinstance(text, str):
            raise FreeholdError(f"{self.url} gave {printable(repr(text)[:100])} as completion; it must be a text")
        return text

    def losses(self, text: str) -> list[float]:
        """Negative log-likelihood in nats of each of the server's tokens of the text, after the first.

        For servers that score prompts (`echo` with `logprobs`). Raises FreeholdError for others.
        """
        found = self._complete(prompt=text, max_tokens=0, echo=True, logprobs=0)
        try:
            losses = [-float(value) for value in found["logprobs"]["token_logprobs"][1:]]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise FreeholdError(f"{self.url} did not score the prompt: it takes no echo with logprobs") from None
        wrong = next((loss for loss in losses if not -_ROUNDING <= loss < math.inf), None)
        if wrong is not None:
            raise FreeholdError(f"{self.url} gave {-wrong} as logarithm of a probability; it must be at most 0")
        return losses

    def _complete(self, **fields: Any) -> dict[str, Any]:
        """The first choice. Raises FreeholdError if the server does not answer, or with something else."""
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        body = json.dumps({"model": self._model, **fields}).encode()
        try:
            request = urllib.request.Request(f"{self.url}/completions", body, headers)
            with _OPENER.open(request, timeout=_TIMEOUT) as reply:
                text = reply.read(_MOST_BYTES + 1)
                if len(text) > _MOST_BYTES:
                    raise ValueError(f"the answer has more than {_MOST_BYTES} bytes")
                choice = json.loads(text)["choices"][0]
                return {"text": choice["text"], "logprobs": choice.get("logprobs")}
        except urllib.error.HTTPError as error:
            said = ""
            with contextlib.suppress(*_BAD_ANSWERS):  # it may hang up here, too
                said = error.read(500).decode(errors="replace")
            raise FreeholdError(f"{self.url} answered with status {error.code}: {printable(said)}") from None
        except _BAD_ANSWERS as error:
            raise FreeholdError(f"{self.url} gave no completion: {printable(str(error).strip())}") from None
