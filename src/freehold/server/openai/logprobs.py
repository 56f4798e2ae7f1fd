"""Log-probabilities in the two forms of OpenAI's APIs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from freehold.core.logprobs import TokenLogprobs
from freehold.server.openai.wire import TextLogprobs
from freehold.server.openai.wire_chat import ChatLogprobs, TokenLogprob, TopLogprob

TokenBytes = Callable[[int], bytes]


def token_text(token: bytes) -> str:
    """A token as text; one that is no whole text is spelled in OpenAI's way, so that two such tokens differ."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def chat_logprobs(tokens: Sequence[tuple[int, TokenLogprobs]], token_bytes: TokenBytes) -> ChatLogprobs:
    """Of sampled tokens, as chats give them."""

    def body(token_id: int, logprob: float) -> TopLogprob:
        spelled = token_bytes(token_id)
        return TopLogprob(token=token_text(spelled), logprob=logprob, bytes=list(spelled))

    return ChatLogprobs(
        content=[
            TokenLogprob(**body(token_id, found.logprob).model_dump(), top_logprobs=[body(*pair) for pair in found.top])
            for token_id, found in tokens
        ]
    )


class TextOffsets:
    """Where the tokens of a text begin, one after the other, in characters.

    Counted from the tokens alone: a stream may hold their text back, as while it could still be a stop text. Where a
    character is spread over several tokens, all but the one that completes it begin and end where it begins.
    """

    def __init__(self) -> None:
        self._characters = 0
        self._unfinished = b""

    def take(self, spelled: bytes) -> int:
        """Where the next token begins. spelled: its bytes."""
        begin, seen = self._characters, self._unfinished + spelled
        whole = len(seen)
        while whole and len(seen) - whole < 4 and not _is_text(seen[:whole]):
            whole -= 1
        self._characters += len(seen[:whole].decode(errors="replace"))
        self._unfinished = seen[whole:]
        return begin


def text_logprobs(
    tokens: Sequence[tuple[int, TokenLogprobs | None]], token_bytes: TokenBytes, offsets: TextOffsets | None = None
) -> TextLogprobs:
    """As completions give them. A position without log-probabilities is the first of an echoed prompt.

    offsets: has taken in the tokens of the text before these; None: there are none.
    """
    offsets = TextOffsets() if offsets is None else offsets
    body = TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token_id, found in tokens:
        spelled = token_bytes(token_id)
        body.tokens.append(token_text(spelled))
        body.token_logprobs.append(None if found is None else found.logprob)
        body.top_logprobs.append(None if found is None else _by_text(token_id, found, token_bytes))
        body.text_offset.append(offsets.take(spelled))
    return body


def _by_text(token_id: int, found: TokenLogprobs, token_bytes: TokenBytes) -> dict[str, float]:
    """The likeliest tokens and the one that stands there. Of tokens with the same text, the likeliest is told."""
    top: dict[str, float] = {}
    for other, logprob in (*found.top, (token_id, found.logprob)):
        top.setdefault(token_text(token_bytes(other)), logprob)
    return top


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
