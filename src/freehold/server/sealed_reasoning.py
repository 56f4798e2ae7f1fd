"""Reasoning in the form of a Responses item's `encrypted_content`: a stateless client keeps it and sends it back.

It is the client's own text, not a secret of ours, so nothing is encrypted: a name, a version, and the text in base64.
"""

from __future__ import annotations

import base64
import binascii

from freehold.core.errors import RequestError

_NAME = "freehold-reasoning."
_VERSION_1 = _NAME + "1."


def seal_reasoning(text: str) -> str:
    """`text` as clients keep it."""
    return _VERSION_1 + base64.b64encode(text.encode()).decode("ascii")


def open_reasoning(sealed: str) -> str | None:
    """The text that was sealed; None for content of another maker, which nobody here can read.

    Raises RequestError for content of ours that is damaged or has a version that is not known here.
    """
    if not sealed.startswith(_NAME):
        return None
    if not sealed.startswith(_VERSION_1):
        raise RequestError("its version is not known here; leave the reasoning item out")
    try:
        return base64.b64decode(sealed[len(_VERSION_1) :], validate=True).decode()
    except (binascii.Error, ValueError):
        raise RequestError("it is damaged; send it back as it was received, or leave the reasoning item out") from None
