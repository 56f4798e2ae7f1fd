"""The paths that pass through the gateway, by the family of API they belong to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Api:
    """name: in records. family: "openai" or "anthropic". path: here.
    suffix: behind an endpoint's address and version.
    """

    name: str
    family: str
    path: str
    suffix: str


APIS = (
    Api("chat", "openai", "/v1/chat/completions", "/chat/completions"),
    Api("completions", "openai", "/v1/completions", "/completions"),
    Api("responses", "openai", "/v1/responses", "/responses"),
    Api("messages", "anthropic", "/v1/messages", "/messages"),
    Api("count_tokens", "anthropic", "/v1/messages/count_tokens", "/messages/count_tokens"),
)
FAMILIES = ("openai", "anthropic")
