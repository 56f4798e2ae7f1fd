"""Whoever writes to a ledger, even with its signing key, changes nothing unseen that an exported checkpoint covers."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from freehold.core.errors import GovernanceError
from freehold.governance.ledger.checkpoint import Checkpoint
from freehold.governance.ledger.files import LedgerFiles, stub_line
from freehold.governance.ledger.merkle import leaf_hash, root_of
from freehold.governance.ledger.record import read_line
from freehold.governance.ledger.verify import Report, verify
from freehold.governance.signing import SigningKey, canonical, signed
from support.ledgers import a_record, copied, hashes_of, new_ledger

SIZE = 30
COVERED = 26  # records of the exported checkpoint; those after it are not proven


@dataclass(frozen=True)
class Target:
    """A ledger, its key, and the checkpoint that its keeper cannot reach."""

    path: Path
    key: SigningKey
    lines: tuple[bytes, ...]
    salts: bytes
    exported: str
    origin: str


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    key = SigningKey.generate()
    path = new_ledger(tmp_path_factory.mktemp("target") / "ledger", key, SIZE)
    files = LedgerFiles(path)
    lines = tuple(leaf.line or b"" for leaf in files.leaves())
    root = root_of(leaf_hash(line) for line in lines[:COVERED])
    exported = Checkpoint.sign(files.origin, COVERED, root, key)
    salts = (path / "records" / "000000000000.salts").read_bytes()
    report = verify(path, [("exported", exported.text)], key.public)
    assert report.holds
    assert report.proven_size == COVERED
    return Target(path, key, lines, salts, exported.text, files.origin)


# --- what an attacker does to the lines ------------------------------------------------------------------------


def edit(lines: list[bytes], rng: random.Random) -> None:
    """One member of one record gets another value."""
    at = rng.randrange(COVERED)
    members = json.loads(lines[at])
    name = rng.choice(sorted(set(members) - {"seq"}))
    value = members[name]
    if name == "usage":
        part = rng.choice(sorted(set(value) - {"estimated"}))
        value[part] = 0 if value[part] else 1
    elif name == "price":
        value["amount"] = f"0.{rng.randrange(10**6)}9"
    elif name == "outcome":
        members[name] = rng.choice(["refused", "failed", "aborted", "disconnected"])
    elif isinstance(value, (int, float)):
        members[name] = value + rng.randint(1, 99)
    elif name == "time":
        members[name] = "2025-01-01T00:00:00.000Z"
    elif name == "kind":
        members["key"] = "another"
    else:
        members[name] = f"{value}x"
    lines[at] = canonical(members)


def remove_member(lines: list[bytes], rng: random.Random) -> None:
    """One record no longer says one thing."""
    at = rng.randrange(COVERED)
    members = json.loads(lines[at])
    del members[rng.choice(["key", "model", "price", "usage", "outcome", "answer_hash", "seconds"])]
    lines[at] = canonical(members)


def flip(lines: list[bytes], rng: random.Random) -> None:
    """One bit of one record."""
    at = rng.randrange(COVERED)
    line = bytearray(lines[at])
    line[rng.randrange(len(line))] ^= 1 << rng.randrange(8)
    lines[at] = bytes(line)


def delete(lines: list[bytes], rng: random.Random) -> None:
    """One record, or several in a row."""
    at = rng.randrange(COVERED)
    del lines[at : at + rng.randint(1, 5)]


def insert(lines: list[bytes], rng: random.Random) -> None:
    """A record that never was."""
    number = rng.randrange(1000, 2000)
    lines.insert(rng.randrange(COVERED), a_record(number, hashes_of(number)).line(0))


def repeat(lines: list[bytes], rng: random.Random) -> None:
    """A record stands there twice."""
    lines.insert(rng.randrange(COVERED), lines[rng.randrange(SIZE)])


def reorder(lines: list[bytes], rng: random.Random) -> None:
    """Two records change places, or one moves."""
    one, other = rng.sample(range(COVERED), 2)
    if rng.random() < 0.5:
        lines[one], lines[other] = lines[other], lines[one]
    else:
        lines.insert(other, lines.pop(one))


def truncate(lines: list[bytes], rng: random.Random) -> None:
    """The end is cut off, so far that covered records are gone."""
    del lines[rng.randrange(COVERED) :]


def blank(lines: list[bytes], rng: random.Random) -> None:
    """A record is passed off as one that was erased, with the hash it had or another."""
    at = rng.randrange(COVERED)
    leaf = leaf_hash(lines[at]) if rng.random() < 0.5 else rng.randbytes(32)
    lines[at] = stub_line(at, leaf)


Attack = Callable[[list[bytes], random.Random], None]
ATTACKS: tuple[Attack, ...] = (edit, remove_member, flip, delete, insert, repeat, reorder, truncate, blank)

# Whether the attacker leaves the rest as it is, writes all of it anew with a key of his own, or has stolen the key.
SKILLS = ("rough", "own key", "stolen key")


def strike(target: Target, place: Path, attack: Attack, skill: str, rng: random.Random) -> None:
    """Put the tampered ledger into `place`, which holds a copy of it."""
    lines = list(target.lines)
    attack(lines, rng)
    assert tuple(lines) != target.lines
    if skill != "rough":
        lines = [_renumbered(line, number) for number, line in enumerate(lines)]
        key = target.key if skill == "stolen key" else SigningKey.generate()
        head = Checkpoint.sign(target.origin, len(lines), root_of(map(_leaf, lines)), key)
        put(place / "head", head.text.encode())
        document = signed({"format": 1, "origin": target.origin, "created": "2026-11-02T08:00:00.000Z"}, key)
        put(place / "ledger.json", canonical(document))
    records = place / "records" / "000000000000.jsonl"
    put(records, b"".join(line + b"\n" for line in lines))
    put(records.with_suffix(".salts"), (target.salts * 2)[: 32 * len(lines)])


def put(path: Path, data: bytes) -> None:
    """A new file: to cut an old one to nothing waits for the disk on some file systems."""
    path.unlink()
    path.write_bytes(data)


def _renumbered(line: bytes, number: int) -> bytes:
    """The record with the number of its place, so that nothing inside of the ledger looks wrong."""
    if line.startswith(b'{"erased"'):
        return stub_line(number, bytes.fromhex(json.loads(line)["erased"]))
    try:
        return canonical({**json.loads(line), "seq": number})
    except (ValueError, TypeError, GovernanceError):
        return line


def _leaf(line: bytes) -> bytes:
    return bytes.fromhex(json.loads(line)["erased"]) if line.startswith(b'{"erased"') else leaf_hash(line)


def restore(target: Target, place: Path) -> None:
    for name in ("head", "ledger.json"):
        put(place / name, (target.path / name).read_bytes())


def run_attacks(target: Target, place: Path, count: int, seed: int) -> Counter[tuple[str, str]]:
    """Attack `count` times; each is detected. How often what was tried."""
    tried: Counter[tuple[str, str]] = Counter()
    copied(target.path, place)
    for number in range(count):
        rng = random.Random(seed * 1_000_003 + number)
        attack, skill = ATTACKS[number % len(ATTACKS)], SKILLS[number // len(ATTACKS) % len(SKILLS)]
        strike(target, place, attack, skill, rng)
        report = verify(place, [("exported", target.exported)], target.key.public)
        assert not report.holds, (number, attack.__name__, skill)
        assert_seen_from_outside(report, attack, skill)
        tried[attack.__name__, skill] += 1
        restore(target, place)
    return tried


def assert_seen_from_outside(report: Report, attack: Attack, skill: str) -> None:
    """With the stolen key nothing inside of the ledger has to look wrong; the checkpoint alone shows it. Only a record
    that was replaced by its own hash keeps the root: that it is gone stands in the report."""
    (against,) = report.checkpoints
    if attack is blank and against.consistent:
        assert report.erased == 1
        assert any("no record says so" in finding for finding in report.findings)
    else:
        assert not against.consistent


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_each_attack_is_detected(target: Target, tmp_path: Path, attack: Attack, skill: str) -> None:
    place = copied(target.path, tmp_path / "ledger")
    for seed in range(5):
        strike(target, place, attack, skill, random.Random(seed))
        report = verify(place, [("exported", target.exported)], target.key.public)
        assert not report.holds
        assert_seen_from_outside(report, attack, skill)
        restore(target, place)


def test_a_thousand_attacks_are_detected(target: Target, tmp_path: Path) -> None:
    tried = run_attacks(target, tmp_path / "ledger", 1080, seed=1)
    assert set(tried.values()) == {40}


@pytest.mark.slow
def test_ten_thousand_attacks_are_detected(target: Target, tmp_path: Path) -> None:
    tried = run_attacks(target, tmp_path / "ledger", 10_000, seed=2)
    assert sum(tried.values()) == 10_000
    assert min(tried.values()) > 350


def test_the_unharmed_ledger_passes(target: Target, tmp_path: Path) -> None:
    """What the attacks are held against: the same check, nothing changed."""
    assert verify(copied(target.path, tmp_path / "ledger"), [("exported", target.exported)], target.key.public).holds


def test_without_a_checkpoint_a_stolen_key_is_not_seen(target: Target, tmp_path: Path) -> None:
    """Why the report says that completeness is not proven then."""
    place = copied(target.path, tmp_path / "ledger")
    strike(target, place, delete, "stolen key", random.Random(1))
    report = verify(place, [], target.key.public)
    assert report.holds
    assert any(line.startswith("completeness") for line in report.not_proven())


def test_without_the_key_an_attack_is_seen_from_inside(target: Target, tmp_path: Path) -> None:
    """The signed head covers every record, those after the exported checkpoint too."""
    place = copied(target.path, tmp_path / "ledger")
    for seed, attack in enumerate(ATTACKS):
        strike(target, place, attack, "own key", random.Random(seed))
        assert not verify(place, [], target.key.public).internally_consistent
        restore(target, place)
    lines = list(target.lines)
    lines[SIZE - 1] = lines[SIZE - 1].replace(b"served", b"failed")
    (place / "records" / "000000000000.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert not verify(place, [], target.key.public).internally_consistent


def test_records_after_the_checkpoint_are_not_claimed(target: Target) -> None:
    report = verify(target.path, [("exported", target.exported)], target.key.public)
    assert any(line.startswith(f"records {COVERED} to {SIZE - 1}:") for line in report.not_proven())


def test_foreign_checkpoints_prove_nothing(target: Target, tmp_path: Path) -> None:
    other = SigningKey.generate()
    root = root_of(map(leaf_hash, target.lines[:COVERED]))
    wrong_key = Checkpoint.sign(target.origin, COVERED, root, other).text
    wrong_ledger = Checkpoint.sign("freehold/ledger/other", COVERED, root, target.key).text
    broken = target.exported.replace("\n26\n", "\n25\n")
    for text in (wrong_key, wrong_ledger, broken, "nothing", ""):
        report = verify(target.path, [("given", text)], target.key.public)
        assert not report.checkpoints[0].consistent
        assert not report.holds
        assert report.proven_size == 0


def test_every_character_of_a_checkpoint_counts(target: Target) -> None:
    for at in range(len(target.exported)):
        text = target.exported[:at] + ("A" if target.exported[at] != "A" else "B") + target.exported[at + 1 :]
        assert not verify(target.path, [("given", text)], target.key.public).holds, at


def test_lost_salts_are_told(target: Target, tmp_path: Path) -> None:
    place = copied(target.path, tmp_path / "ledger")
    salts = place / "records" / "000000000000.salts"
    salts.write_bytes(target.salts[:64] + bytes(32) + target.salts[96:])
    report = verify(place)
    assert report.findings == ["the salt of record 2 is gone, and no record says so"]
    salts.write_bytes(target.salts[:-1])
    assert verify(place).findings == [f"the salt of record {SIZE - 1} is missing"]


def test_all_lines_are_read(target: Target) -> None:
    assert [read_line(line)[0] for line in target.lines] == list(range(SIZE))
