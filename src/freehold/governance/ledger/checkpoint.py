"""A signed checkpoint: how large a ledger was, and its root, in the form of C2SP's tlog-checkpoint and signed-note.

    <origin>
    <size, decimal>
    <root, base64>

    — <origin> <base64 of 4 bytes naming the key, and an Ed25519 signature over the lines above the empty one>

A checkpoint says that the holder of the key had a ledger of this size with these records. Kept where the ledger's
keeper cannot write, it shows every later change of them; kept beside the ledger, it shows those by others alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from freehold.core.errors import GovernanceError, SignatureError
from freehold.governance.ledger.merkle import HASH_BYTES
from freehold.governance.signing import PublicKey, SigningKey

_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_SIGNATURE = re.compile(r"— (\S+) (\S+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """origin: the ledger's own name. size: its records. root: 32 bytes. text: the whole signed note."""

    origin: str
    size: int
    root: bytes
    text: str

    @staticmethod
    def sign(origin: str, size: int, root: bytes, key: SigningKey) -> Checkpoint:
        """What the holder of `key` says about a ledger now."""
        body = _body(origin, size, root)
        mark = base64.b64encode(key_id(origin, key.public) + key.sign(body.encode())).decode()
        return Checkpoint(origin, size, root, f"{body}\n— {origin} {mark}\n")

    @staticmethod
    def parse(text: str) -> Checkpoint:
        """Read a note, in its one right spelling; signatures are not looked at. Raises GovernanceError."""
        body, _, marks = text.partition("\n\n")
        lines = body.split("\n")
        try:
            origin, size, root = lines[0], int(lines[1]), base64.b64decode(lines[2], validate=True)
        except (IndexError, ValueError, binascii.Error) as error:
            raise GovernanceError("This is no checkpoint: its lines are origin, size and root.") from error
        if len(root) != HASH_BYTES or not origin or f"{body}\n" != _body(origin, size, root) or not marks:
            raise GovernanceError("This is no checkpoint of this kind: something in it does not belong there.")
        return Checkpoint(origin, size, root, text)

    def signed_by(self, key: PublicKey) -> bool:
        """Whether one of the note's signatures is of this key."""
        body = _body(self.origin, self.size, self.root).encode()
        wanted = key_id(self.origin, key)
        for line in self.text.partition("\n\n")[2].splitlines():
            match = _SIGNATURE.fullmatch(line)
            if match is None or match.group(1) != self.origin:
                continue
            mark = _mark(match.group(2))
            if mark[:_KEY_ID_BYTES] == wanted and key.verifies(mark[_KEY_ID_BYTES:], body):
                return True
        return False

    def require(self, key: PublicKey, name: str) -> None:
        """Raises SignatureError unless the key signed it. name: for the message."""
        if not self.signed_by(key):
            raise SignatureError(f"{name} is not signed by the key {key.id}, or was changed after signing.")


def key_id(origin: str, key: PublicKey) -> bytes:
    """The 4 bytes by which a signed note names an Ed25519 key."""
    return hashlib.sha256(origin.encode() + b"\n" + _ED25519 + key.raw).digest()[:_KEY_ID_BYTES]


def verifier_key(origin: str, key: PublicKey) -> str:
    """The public key in the one line that other tools for signed notes take."""
    return f"{origin}+{key_id(origin, key).hex()}+{base64.b64encode(_ED25519 + key.raw).decode()}"


def _mark(text: str) -> bytes:
    """A signature line's bytes; empty unless `text` is their one right spelling, so that no character can change."""
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return b""
    return data if base64.b64encode(data).decode() == text else b""


def _body(origin: str, size: int, root: bytes) -> str:
    return f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
