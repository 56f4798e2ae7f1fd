"""The group of records that is being written: its outcome is signed before its first byte stands in the ledger.

So what a crash leaves can be told from what somebody without the key has added: lines behind the signed ones are either
those of the signed group, or its beginning, or nobody's.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from freehold.core.errors import GovernanceError
from freehold.governance.ledger.checkpoint import Checkpoint
from freehold.governance.signing import PublicKey

NAME = "pending"
_BLOCK = 512
"""Written in place, and no larger than what disks write at once: both states, or the two before them."""


@dataclass(frozen=True, slots=True)
class Pending:
    """before: the ledger when the group began, every record durable. after: as it is when the whole group is there."""

    before: Checkpoint
    after: Checkpoint


def write_pending(ledger: Path, pending: Pending) -> None:
    """Durable when this returns. Raises OSError."""
    data = f"{pending.before.text}\0{pending.after.text}\0".encode()
    data += bytes(-len(data) % _BLOCK)
    descriptor = os.open(ledger / NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, data, 0)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def read_pending(ledger: Path, origin: str, key: PublicKey) -> Pending | None:
    """None where there is none that this key has signed for this ledger."""
    with contextlib.suppress(OSError, ValueError, GovernanceError):
        before, after = (Checkpoint.parse(text) for text in (ledger / NAME).read_text("utf-8").split("\0")[:2])
        if all(state.origin == origin and state.signed_by(key) for state in (before, after)):
            return Pending(before, after)
    return None
