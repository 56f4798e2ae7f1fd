"""Proofs that one record stands in a ledger, for somebody who has nothing else of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.core.errors import GovernanceError
from freehold.governance.ledger.checkpoint import Checkpoint, verifier_key
from freehold.governance.ledger.files import LedgerFiles
from freehold.governance.ledger.merkle import inclusion_path, leaf_hash, root_of, verify_inclusion
from freehold.governance.ledger.record import LedgerRecord, read_line
from freehold.governance.ledger.salted import ERASED, SaltedHashes, salt_commitment
from freehold.governance.signing import PublicKey, canonical

FORMAT = "freehold inclusion proof 1"


@dataclass(frozen=True, slots=True)
class Found:
    """A record in its ledger. record: None where it was erased. salt: None where there is none any more."""

    position: int
    line: bytes | None
    record: LedgerRecord | None
    salt: bytes | None


def find(files: LedgerFiles, name: str) -> Found:
    """The record with an id, or with a number if `name` is `#12`; the last of several. Raises GovernanceError."""
    wanted = int(name[1:]) if name.startswith("#") and name[1:].isdecimal() else None
    needle = canonical(name)
    hit: tuple[int, bytes | None] | None = None
    for leaf in files.leaves():
        if wanted is not None:
            if leaf.position == wanted:
                hit = (leaf.position, leaf.line)
                break
        elif leaf.line is not None and needle in leaf.line and read_line(leaf.line)[1].id == name:
            hit = (leaf.position, leaf.line)
    if hit is None:
        raise GovernanceError(f"The ledger {files.path} has no record {name!r}; list them with: freehold audit list")
    position, line = hit
    salt = files.salt(position)
    record = None if line is None else read_line(line)[1]
    return Found(position, line, record, None if salt == ERASED else salt)


def require_salt(record: LedgerRecord, salt: bytes) -> None:
    """Raises GovernanceError unless a salt is the one with which a record was written."""
    if record.salt_hash != salt_commitment(salt):
        raise GovernanceError(
            f"The salt of record {record.id!r} is not the one it was written with: somebody exchanged it. Nothing can "
            "be said about the content with it, neither that it is the recorded one nor that it is not."
        )


def prove(files: LedgerFiles, name: str, checkpoint: Checkpoint | None = None, *, with_salt: bool) -> dict[str, Any]:
    """The proof that a record stands in the tree of a checkpoint; None: of the ledger's head.

    with_salt: whoever gets the proof can then check the request's and the answer's bytes too. Raises GovernanceError
    for a record that was erased, and for a checkpoint that the ledger does not fit.
    """
    found = find(files, name)
    if found.line is None:
        raise GovernanceError(f"Record {name!r} was erased; only its hash is left, and nothing to be proven about.")
    checkpoint = files.head() if checkpoint is None else checkpoint
    if checkpoint is None:
        raise GovernanceError(
            f"The ledger {files.path} has no head that can be read; give a checkpoint (--checkpoint)."
        )
    if found.position >= checkpoint.size:
        raise GovernanceError(f"Record {name!r} is number {found.position}; the checkpoint covers {checkpoint.size}.")
    leaves = [leaf.leaf for leaf in files.leaves()][: checkpoint.size]
    if len(leaves) < checkpoint.size or root_of(leaves) != checkpoint.root:
        raise GovernanceError(f"The ledger {files.path} does not fit the checkpoint: freehold audit verify says more.")
    proof: dict[str, Any] = {
        "format": FORMAT,
        "record": found.line.decode(),
        "index": found.position,
        "path": [step.hex() for step in inclusion_path(leaves, found.position)],
        "checkpoint": checkpoint.text,
        "key": verifier_key(files.origin, files.key),
    }
    if with_salt:
        if found.salt is None:
            raise GovernanceError(f"The salt of record {name!r} was erased; a proof without it is still possible.")
        assert found.record is not None
        require_salt(found.record, found.salt)
        proof["salt"] = found.salt.hex()
    return proof


@dataclass(frozen=True, slots=True)
class Proven:
    """What a proof shows. checkpoint: in whose tree the record stands."""

    record: LedgerRecord
    index: int
    checkpoint: Checkpoint
    salt: bytes | None

    def fits(self, *, request: bytes | None = None, answer: bytes | None = None) -> bool:
        """Whether these are the bytes of the request and of the answer. Raises GovernanceError without a salt."""
        if self.salt is None:
            raise GovernanceError(
                "The proof has no salt, so that no content can be compared with it (prove --with-salt)."
            )
        require_salt(self.record, self.salt)
        hashes = SaltedHashes(self.salt)
        fits = True
        if request is not None:
            hashes.add_request(request)
            fits &= hashes.request == self.record.request_hash
        if answer is not None:
            hashes.add_answer(answer)
            fits &= hashes.answer == self.record.answer_hash
        return fits


def check_proof(path: Path, key: PublicKey) -> Proven:
    """Check a proof with nothing but itself and the ledger's public key. Raises GovernanceError where it is none."""
    try:
        proof = json.loads(path.read_bytes())
        if proof["format"] != FORMAT:
            raise GovernanceError(f"{path} has the format {proof['format']!r}; this release reads {FORMAT!r}.")
        line, index = proof["record"].encode(), int(proof["index"])
        steps = [bytes.fromhex(step) for step in proof["path"]]
        text, salt = str(proof["checkpoint"]), proof.get("salt")
        secret = None if salt is None else bytes.fromhex(salt)
    except OSError as error:
        raise GovernanceError(f"The proof {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise GovernanceError(f"{path} is no inclusion proof.") from error
    checkpoint = Checkpoint.parse(text)
    checkpoint.require(key, "The proof's checkpoint")
    seq, record = read_line(line)
    if seq != index or not verify_inclusion(leaf_hash(line), index, checkpoint.size, steps, checkpoint.root):
        raise GovernanceError(
            f"The record {record.id!r} does not stand in the tree of the checkpoint: the proof is wrong."
        )
    return Proven(record, index, checkpoint, secret)
