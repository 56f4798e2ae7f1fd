"""Hashes of content under a salt: they prove a text to whoever has it, and tell nothing once the salt is erased.

A plain hash of a short prompt could be found by trying likely prompts. With 32 random bytes for each record, which
stand beside the ledger and not in it, that is out of reach without them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

SALT_BYTES = 32
ERASED = bytes(SALT_BYTES)
"""What stands where a salt was."""


def salt_commitment(salt: bytes) -> str:
    """The hash of a salt, in hex, for its record: it shows a salt that was exchanged, and tells nothing of one that is
    erased, since nobody tries 32 random bytes."""
    return hashlib.sha256(b"salt\n" + salt).hexdigest()


class SaltedHashes:
    """The hashes of one request and its answer, piece by piece. salt: 32 bytes; None: new ones."""

    def __init__(self, salt: bytes | None = None) -> None:
        self.salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
        self._request = _mac(self.salt, b"request\n")
        self._answer = _mac(self.salt, b"answer\n")

    def add_request(self, data: bytes) -> None:
        """More bytes of the request."""
        self._request.update(data)

    def add_answer(self, data: bytes) -> None:
        """More bytes of the answer."""
        self._answer.update(data)

    @property
    def request(self) -> str:
        """Of the request so far, in hex."""
        return self._request.hexdigest()

    @property
    def answer(self) -> str:
        """Of the answer so far, in hex."""
        return self._answer.hexdigest()


def _mac(salt: bytes, label: bytes) -> hmac.HMAC:
    return hmac.new(salt, label, hashlib.sha256)
