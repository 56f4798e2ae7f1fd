"""Who is asked: a model here, or whatever answers behind an OpenAI-compatible address."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Protocol

from freehold.core.errors import FreeholdError
from freehold.engine.llm import LLM

_TIMEOUT = 3600.0


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

    def close(self) -> None:
        """Frees the model."""
        self._llm.close()


class Endpoint:
    """A server with /v1/completions. A token is taken for four characters: the server's own count differs."""

    def __init__(self, url: str, model: str, key: str | None = None) -> None:
        """url: up to and with /v1."""
        self._url, self._model, self._key = url.rstrip("/"), model, key

    def count(self, text: str) -> int:
        """See `Asked`."""
        return (len(text) + 3) // 4

    def answer(self, prompt: str, max_tokens: int) -> str:
        """See `Asked`. Raises FreeholdError if the server does not answer."""
        found = self._complete(prompt=prompt, max_tokens=max_tokens, temperature=0)
        return str(found["text"])

    def losses(self, text: str) -> list[float]:
        """Negative log-likelihood in nats of each of the server's tokens of the text, after the first.

        For servers that score prompts (`echo` with `logprobs`). Raises FreeholdError for others.
        """
        found = self._complete(prompt=text, max_tokens=0, echo=True, logprobs=0)
        try:
            return [-float(value) for value in found["logprobs"]["token_logprobs"][1:]]
        except (KeyError, TypeError, ValueError):
            raise FreeholdError(f"{self._url} did not score the prompt: it takes no echo with logprobs") from None

    def _complete(self, **fields: Any) -> dict[str, Any]:
        """The first choice. Raises FreeholdError if the server does not answer, or with something else."""
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        body = json.dumps({"model": self._model, **fields}).encode()
        request = urllib.request.Request(f"{self._url}/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
                choice = json.load(reply)["choices"][0]
                return {"text": choice["text"], "logprobs": choice.get("logprobs")}
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace")
            raise FreeholdError(f"{self._url} answered with status {error.code}: {said}") from None
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise FreeholdError(f"{self._url} gave no completion: {error}") from None
