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
from freehold.governance.ledger.appender import Appender, Draft
from freehold.governance.ledger.checkpoint import Checkpoint
from freehold.governance.ledger.files import LedgerFiles, stub_line
from freehold.governance.ledger.merkle import leaf_hash, root_of
from freehold.governance.ledger.pending import Pending, write_pending
from freehold.governance.ledger.proof import prove
from freehold.governance.ledger.record import LedgerRecord, read_line
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
        write_pending(place, Pending(head, head))
        document = signed({"format": 1, "origin": target.origin, "created": "2026-11-02T08:00:00.000Z"}, key)
        put(place / "ledger.json", canonical(document))
    records = place / "records" / "000000000000.jsonl"
    put(records, b"".join(line + b"\n" for line in lines))
    # The salts go with their records, as far as these are still to be read.
    salts = [hashes_of(number).salt for number in map(_number, lines)] if skill != "rough" else [target.salts * 2]
    put(records.with_suffix(".salts"), b"".join(salts)[: 32 * len(lines)])


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


def _number(line: bytes) -> int:
    """The one in the record's id."""
    try:
        return int(json.loads(line)["id"].removeprefix("request-"))
    except (ValueError, KeyError, AttributeError):
        return 0


def _leaf(line: bytes) -> bytes:
    return bytes.fromhex(json.loads(line)["erased"]) if line.startswith(b'{"erased"') else leaf_hash(line)


def restore(target: Target, place: Path) -> None:
    for name in ("head", "ledger.json", "pending"):
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


def test_the_unused_bits_of_a_signature_s_last_character_count(target: Target) -> None:
    """Two of its bits say nothing, so that readers of Base64 take three more letters for it."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    body, last = target.exported.removesuffix("=\n")[:-1], target.exported.removesuffix("=\n")[-1]
    assert verify(target.path, [("given", f"{body}{last}=\n")], target.key.public).holds
    for more in (1, 2, 3):
        other = letters[letters.index(last) + more]
        assert not verify(target.path, [("given", f"{body}{other}=\n")], target.key.public).holds, other


def test_lost_salts_are_told(target: Target, tmp_path: Path) -> None:
    place = copied(target.path, tmp_path / "ledger")
    salts = place / "records" / "000000000000.salts"
    salts.write_bytes(target.salts[:64] + bytes(32) + target.salts[96:])
    report = verify(place)
    assert report.findings == ["the salt of record 2 is gone, and no record says so"]
    salts.write_bytes(target.salts[:-1])
    assert verify(place).findings == [f"the salt of record {SIZE - 1} is missing"]


def test_changed_salts_are_told(target: Target, tmp_path: Path) -> None:
    """Genuine bytes would else be called forged: the salts stand in no tree."""
    place = copied(target.path, tmp_path / "ledger")
    salts = place / "records" / "000000000000.salts"
    rng = random.Random(5)
    for number in range(SIZE):
        at = 32 * number + rng.randrange(32)
        changed = bytearray(target.salts)
        changed[at] ^= 1 << rng.randrange(8)
        put(salts, bytes(changed))
        report = verify(place, [("exported", target.exported)], target.key.public)
        assert report.findings == [f"the salt of record {number} is not the one it was written with"]
        with pytest.raises(GovernanceError, match="not the one it was written with"):
            prove(LedgerFiles(place), f"#{number}", with_salt=True)
    put(salts, target.salts[32:64] + target.salts[:32] + target.salts[64:])
    assert len(verify(place).findings) == 2


def test_all_lines_are_read(target: Target) -> None:
    assert [read_line(line)[0] for line in target.lines] == list(range(SIZE))


# --- what somebody without the key adds behind the end --------------------------------------------------------------


def forged_tail(size: int, gone: list[int]) -> list[bytes]:
    """An erasure of some records and a request, as the ledger itself would write them."""
    details = {"what": "records", "ranges": [[gone[0], gone[-1]]], "why": "by order"}
    erasure = LedgerRecord(id="erasure-1", time="2026-11-29T00:00:00.000Z", kind="erasure", details=details)
    return [erasure.line(size), a_record(99, key="victim").line(size + 1)]


def destroy(target: Target, place: Path, gone: list[int], tail: list[bytes]) -> bytes:
    """Put hashes where records stood, and lines behind the last one; the file then."""
    lines = list(target.lines)
    for number in gone:
        lines[number] = stub_line(number, leaf_hash(lines[number]))
    data = b"".join(line + b"\n" for line in (*lines, *tail))
    put(place / "records" / "000000000000.jsonl", data)
    return data


@pytest.mark.parametrize("count", [1, 2], ids=["an erasure", "an erasure and a request"])
def test_records_cannot_be_destroyed_by_a_forged_erasure(target: Target, tmp_path: Path, count: int) -> None:
    place, gone = copied(target.path, tmp_path / "ledger"), [3, 4, 5]
    data = destroy(target, place, gone, forged_tail(SIZE, gone)[:count])
    report = verify(place, [("exported", target.exported)], target.key.public)
    assert not report.internally_consistent
    assert [f"record {n} was erased, and no record says so" for n in gone] == report.findings[:3]
    assert f"{count} lines behind the {SIZE} signed records are not signed" in report.findings[3]
    assert (report.size, report.signed_size, report.unsigned) == (SIZE, SIZE, count)
    assert not verify(place).holds
    # And nothing signs it: neither a new writer nor one that was there before.
    before = (place / "head").read_bytes()
    with pytest.raises(GovernanceError, match=rf"{count} lines follow the {SIZE} signed records"):
        Appender(LedgerFiles(place), target.key, print)
    assert (place / "head").read_bytes() == before
    assert (place / "records" / "000000000000.jsonl").read_bytes() == data
    assert [leaf.position for leaf in LedgerFiles(place).leaves()] == list(range(SIZE))


@pytest.mark.parametrize("again", [1, 2])
def test_a_writer_at_work_does_not_sign_what_others_add(target: Target, tmp_path: Path, again: int) -> None:
    place = copied(target.path, tmp_path / "ledger")
    writer = Appender(LedgerFiles(place), target.key, print)
    with (place / "records" / "000000000000.jsonl").open("ab") as file:
        file.write(forged_tail(SIZE, [3])[1] + b"\n")
    for _ in range(again):
        with pytest.raises(GovernanceError, match="1 lines follow"):
            writer.add([Draft(a_record(SIZE))])
    assert LedgerFiles(place).head() == LedgerFiles(target.path).head()
    # A file of its own behind the end is no way around it.
    put(place / "records" / "000000000000.jsonl", b"".join(line + b"\n" for line in target.lines))
    (place / "records" / f"{SIZE:012d}.jsonl").write_bytes(forged_tail(SIZE, [3])[1] + b"\n")
    with pytest.raises(GovernanceError, match="1 lines follow"):
        writer.add([Draft(a_record(SIZE))])
    (place / "records" / f"{SIZE:012d}.jsonl").unlink()
    assert writer.add([Draft(a_record(SIZE))])[0] == SIZE
    writer.close()
    assert verify(place).holds


def test_a_forged_end_of_a_group_is_no_record(target: Target, tmp_path: Path) -> None:
    """Whoever catches a moment in which a group is being written can put lines there; they count for nothing."""
    place = copied(target.path, tmp_path / "ledger")
    root = root_of(leaf_hash(line) for line in (*target.lines, b"a", b"b", b"c"))
    head = LedgerFiles(place).head()
    assert head is not None
    write_pending(place, Pending(head, Checkpoint.sign(target.origin, SIZE + 3, root, target.key)))
    gone = [3, 4, 5]
    destroy(target, place, gone, forged_tail(SIZE, gone))
    assert len(verify(place).findings) == 3
    destroy(target, place, [], forged_tail(SIZE, gone))
    report = verify(place)
    assert report.holds
    assert any("2 lines behind" in note and "no records" in note for note in report.notes)
    assert (report.size, report.unsigned) == (SIZE, 2)
    said: list[str] = []
    writer = Appender(LedgerFiles(place), target.key, said.append)
    writer.close()
    assert len(said) == 1
    assert "moved to" in said[0]
    assert writer.head == head
    assert (place / "records" / "000000000000.jsonl").read_bytes().splitlines() == list(target.lines)
    # One line more than the group has, or as many as it has: no crash leaves that.
    destroy(target, place, [], [*forged_tail(SIZE, gone), a_record(7).line(SIZE + 2)])
    assert "3 lines behind" in verify(place).findings[0]


@pytest.mark.parametrize("covers_pending", [False, True])
def test_the_end_can_be_cut_off_unseen_without_a_later_checkpoint(
    target: Target, tmp_path: Path, covers_pending: bool
) -> None:
    """By whoever can write to the files and has an older signed state: the report does not claim otherwise."""
    place = copied(target.path, tmp_path / "ledger")
    put(place / "records" / "000000000000.jsonl", b"".join(line + b"\n" for line in target.lines[:COVERED]))
    put(place / "head", target.exported.encode())
    later = LedgerFiles(target.path).head()
    assert later is not None
    state = Checkpoint.parse(target.exported) if covers_pending else later
    write_pending(place, Pending(state, state))
    alone = verify(place, (), target.key.public)
    assert alone.holds == covers_pending
    assert any("whoever can write to the files could have cut the end off" in line for line in alone.not_proven())
    assert not verify(place, [("later", later.text)], target.key.public).checkpoints[0].consistent


def test_an_erasure_tells_nothing_of_records_after_it(tmp_path: Path) -> None:
    """So that one with a wide range is no licence for later."""
    key = SigningKey.generate()
    place = new_ledger(tmp_path / "ledger", key, 3)
    details = {"what": "records", "ranges": [[0, 10**6]], "why": ""}
    wide = LedgerRecord(id="erasure-1", time="2026-11-29T00:00:00.000Z", kind="erasure", details=details)
    writer = Appender(LedgerFiles(place), key, print)
    writer.add([Draft(wide), Draft(a_record(4))])
    writer.close()
    file = place / "records" / "000000000000.jsonl"
    lines = file.read_bytes().splitlines()
    for number in (1, 4):
        lines[number] = stub_line(number, leaf_hash(lines[number]))
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    assert verify(place).findings == ["record 4 was erased, and no record says so"]
