"""`freehold cache`: list, verify, prune, export, import."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from freehold.cache.catalog_file import CatalogFile
from freehold.cache.identity import Identity
from freehold.cache.segments import Segments
from freehold.cli.main import main
from freehold.cli.quantities import shown_size
from support.stored_blocks import (
    IDENTITY,
    OTHER_IDENTITY,
    RECORD_BYTES,
    keys_of,
    open_store,
    overwrite,
    put_chain,
    read_block,
    stored_keys,
)

DAY = 86400 * 10**9


@pytest.fixture
def blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FREEHOLD_HOME/blocks with two identities; chain 1-2-3 was used ten days ago, 7 is pinned and as old."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    directory = tmp_path / "home" / "blocks"
    now = time.time_ns()
    with monkeypatch.context() as patch, open_store(directory) as store:
        patch.setattr(time, "time_ns", lambda: now - 10 * DAY)
        put_chain(store, 1, 2, 3)
        put_chain(store, 7)
        store.pin(keys_of(7)[0])
        store.flush()
        patch.setattr(time, "time_ns", lambda: now)
        put_chain(store, 1, 5)
    with open_store(directory, identity=OTHER_IDENTITY) as store:
        put_chain(store, 8)
    return directory


def run(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(main, ["cache", *arguments], input=typed)


def run_json(*arguments: str) -> dict[str, Any]:
    """What a command says that succeeds; its last line is one JSON object."""
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def sessions() -> list[dict[str, Any]]:
    identities = run_json("list")["identities"]
    found: list[dict[str, Any]] = next(item for item in identities if item["identity"] == IDENTITY.short)["sessions"]
    return found


def left(directory: Path) -> set[bytes]:
    with open_store(directory) as store:
        return set(stored_keys(store))


def test_list_shows_identities_and_sessions(blocks: Path) -> None:
    said = run_json("list")
    assert (said["directory"], said["damage"]) == (str(blocks), [])
    one, two = sorted(said["identities"], key=lambda item: -item["blocks"])
    assert (one["identity"], one["digest"]) == (IDENTITY.short, IDENTITY.digest.hex())
    assert (one["description"], one["blocks"], one["bytes"]) == ({"model": "one"}, 5, 5 * RECORD_BYTES)
    assert (two["description"], two["blocks"]) == ({"model": "two"}, 1)
    sessions = [(item["key"], item["tokens"], item["pinned"]) for item in one["sessions"]]
    assert sessions[0] == (keys_of(1, 5)[1].hex(), 8, False)
    assert set(sessions[1:]) == {(keys_of(1, 2, 3)[2].hex(), 12, False), (keys_of(7)[0].hex(), 4, True)}
    shown = run("list").stdout
    assert f"{IDENTITY.short}  5 blocks  102 KB  model one" in shown
    assert "4 tokens" in next(line for line in shown.splitlines() if line.endswith("pinned"))


def test_list_of_nothing_is_no_error(tmp_path: Path) -> None:
    done = run("list", "--dir", str(tmp_path / "none"))
    assert (done.exit_code, done.stdout) == (0, "")
    assert "No blocks are stored" in done.stderr
    assert run_json("list", "--dir", str(tmp_path / "none"))["identities"] == []


def test_list_gives_the_terminal_nothing_to_obey(tmp_path: Path) -> None:
    with open_store(tmp_path, identity=Identity(bytes(32), {"model": "\x1b]0;title\x07"})):
        pass
    done = CliRunner().invoke(main, ["cache", "list", "--dir", str(tmp_path)], color=True)
    assert "model \\x1b]0;title\\x07\n" in done.stdout


def test_list_and_verify_run_beside_a_server(blocks: Path) -> None:
    with open_store(blocks) as store:
        put_chain(store, 20, 21)
        identities = run_json("list")["identities"]
        assert next(item for item in identities if item["identity"] == IDENTITY.short)["blocks"] == 7
        assert run_json("verify") == {"directory": str(blocks), "blocks": 8, "damage": []}
        put_chain(store, 22)
        assert all(read_block(store, key) for key in stored_keys(store))
        assert store.damage.events == ()


def test_what_a_server_adds_while_verify_begins_is_no_damage(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(blocks) as store:
        added = itertools.count(20)

        def beside_the_server(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def called(self: Any) -> Any:
                put_chain(store, next(added))
                done = method(self)
                put_chain(store, next(added))
                return done

            return called

        monkeypatch.setattr(Segments, "count", beside_the_server(Segments.count))
        monkeypatch.setattr(CatalogFile, "load", beside_the_server(CatalogFile.load))
        assert run_json("verify")["damage"] == []


def test_verify_finds_every_wrong_checksum_and_changes_nothing(blocks: Path) -> None:
    assert run("verify").stdout == "6 blocks read; no problems found.\n"
    with open_store(blocks) as store:
        overwrite(blocks, store.find(keys_of(1, 2)[1]), "0/index")
        overwrite(blocks, store.find(keys_of(7)[0]), "1/kv")
    for _ in range(2):
        done = run("verify", "--json")
        assert done.exit_code == 1
        said = json.loads(done.stdout.splitlines()[-1])
        assert sorted(item["what"] for item in said["damage"]) == [
            "the checksum of 0/index is wrong",
            "the checksum of 1/kv is wrong",
        ]
        assert keys_of(7)[0].hex()[:16] in "".join(item["where"] for item in said["damage"])


@pytest.mark.parametrize("name", ["identity.json", "identity.copy.json"])
@pytest.mark.parametrize("harm", [lambda path: path.write_bytes(b"{}"), Path.unlink], ids=["garbage", "missing"])
def test_verify_finds_one_copy_of_a_label_that_is_not_whole(
    blocks: Path, name: str, harm: Callable[[Path], object]
) -> None:
    path = blocks / f"v1-{IDENTITY.short}" / name
    harm(path)
    done = run("verify", "--json")
    assert done.exit_code == 1
    assert [item["where"] for item in json.loads(done.stdout.splitlines()[-1])["damage"]] == [str(path)]


@pytest.mark.parametrize("name", ["catalog.sqlite", "segment-000000.blocks", "identity.json"])
def test_verify_names_what_is_missing_or_damaged(blocks: Path, name: str) -> None:
    for path in (blocks / f"v1-{IDENTITY.short}").glob(name.replace(".json", "*.json")):
        path.write_bytes(b"garbage")
    done = run("verify", "--json")
    assert done.exit_code == 1
    where = [item["where"] for item in json.loads(done.stdout.splitlines()[-1])["damage"]]
    assert where
    assert all(f"v1-{IDENTITY.short}" in place for place in where)
    assert run("list").exit_code == 0


def test_prune_keeps_the_most_recently_used(blocks: Path) -> None:
    said = run_json("prune", "--max-bytes", str(3 * RECORD_BYTES), "--yes")
    assert said == {
        "directory": str(blocks),
        "removed_blocks": 3,
        "removed_bytes": 3 * RECORD_BYTES,
        "blocks": 3,
        "bytes": 3 * RECORD_BYTES,
    }
    assert left(blocks) == {*keys_of(1), *keys_of(7)}  # and 8 of the other identity
    assert run_json("list")["identities"][0]["blocks"] + run_json("list")["identities"][1]["blocks"] == 3


def test_prune_by_age_spares_pinned_blocks_and_beginnings_in_use(blocks: Path) -> None:
    assert run_json("prune", "--older-than", "20d", "--yes")["removed_blocks"] == 0
    assert run_json("prune", "--older-than", "9d", "--yes")["removed_blocks"] == 2
    assert left(blocks) == {*keys_of(1, 5), *keys_of(7)}
    assert sum(path.stat().st_blocks * 512 for path in blocks.rglob("segment-*")) < 5 * RECORD_BYTES


def test_a_pinned_session_outlives_newer_ones(blocks: Path) -> None:
    old = keys_of(1, 2, 3)[2].hex()
    said = run_json("pin", old[:12])
    assert (said["session"], said["tokens"], said["pinned"]) == (old, 12, True)
    assert run_json("pin", old[:12].upper())["session"] == old
    assert f"{old[:16]}         12 tokens" in run("list").stdout
    run_json("unpin", keys_of(7)[0].hex()[:12])
    assert run_json("prune", "--max-bytes", str(3 * RECORD_BYTES), "--yes")["removed_blocks"] == 3
    assert left(blocks) == set(keys_of(1, 2, 3))


def test_what_follows_a_pin_is_not_pinned(blocks: Path) -> None:
    run_json("pin", keys_of(1, 2, 3)[2].hex())
    with open_store(blocks) as store:
        put_chain(store, 1, 2, 3, 4)
    (session,) = (s for s in sessions() if s["tokens"] == 16)
    assert (session["pinned"], session["pinned_tokens"]) == (True, 12)
    assert "pinned up to 12 tokens" in run("list").stdout
    run_json("unpin", session["key"][:10])
    assert not any(s["pinned_tokens"] for s in sessions() if s["tokens"] > 4)


def test_pins_say_what_they_do_not_find(blocks: Path) -> None:
    done = run("pin", "ffff0000ff")
    assert done.exit_code != 0
    assert "there is none" in done.output
    with open_store(blocks):
        assert "is in use by process" in run("pin", keys_of(7)[0].hex()).output
    assert "does not exist" in run("pin", "ab", "--dir", str(blocks / "none")).output
    for identity in ("", "0123"):
        done = run("pin", keys_of(7)[0].hex(), "--identity", identity)
        assert f"has no blocks of identity {identity!r}" in done.output


@pytest.mark.parametrize("command", ["pin", "unpin"])
def test_no_name_is_not_the_name_of_the_only_session(tmp_path: Path, command: str) -> None:
    with open_store(tmp_path / "blocks") as store:
        put_chain(store, 1, 2)
    done = run(command, "", "--dir", str(tmp_path / "blocks"))
    assert done.exit_code == 2
    assert "SESSION is empty" in done.output


def test_prune_of_one_identity_leaves_the_others(blocks: Path) -> None:
    assert run_json("prune", "--identity", IDENTITY.short[:6], "--yes")["removed_blocks"] == 5
    assert not (blocks / f"v1-{IDENTITY.short}").exists()
    with open_store(blocks, identity=OTHER_IDENTITY) as store:
        assert list(stored_keys(store)) == keys_of(8)
    done = run("prune", "--identity", "0123", "--yes")
    assert done.exit_code == 1
    assert "has no blocks of identity '0123'" in done.stderr


def test_prune_all_removes_even_what_cannot_be_read(blocks: Path) -> None:
    for path in blocks.glob(f"v1-{OTHER_IDENTITY.short}/identity*"):
        path.write_bytes(b"garbage")
    assert run_json("prune", "--older-than", "1d", "--yes")["removed_blocks"] == 2
    assert (blocks / f"v1-{OTHER_IDENTITY.short}").exists()
    assert run_json("prune", "--all", "--yes")["bytes"] == 0
    assert not list(blocks.glob("v1-*"))


def test_prune_asks_first(blocks: Path) -> None:
    before = left(blocks)
    done = run("prune", "--all", typed="n\n")
    assert done.exit_code == 1
    assert f"Remove 6 blocks, {shown_size(6 * RECORD_BYTES)}, from {blocks}?" in done.stderr
    assert left(blocks) == before
    assert run("prune", "--all", typed="y\n").exit_code == 0
    assert left(blocks) == set()


def test_prune_says_what_it_needs(blocks: Path) -> None:
    for arguments in (["prune"], ["prune", "--max-bytes", "much"], ["prune", "--older-than", "5"]):
        assert run(*arguments).exit_code == 2
    with open_store(blocks):
        done = run("prune", "--all", "--yes")
    assert done.exit_code == 1
    assert f"in use by process {os.getpid()}" in done.stderr


def test_export_and_import_carry_one_session(blocks: Path, tmp_path: Path) -> None:
    session = keys_of(1, 2, 3)[2].hex()[:16]
    file, target = str(tmp_path / "session"), str(tmp_path / "target")
    said = run_json("export", file, "--identity", IDENTITY.short, "--session", session)
    assert (said["blocks"], said["bytes"]) == (3, Path(file).stat().st_size)
    refused = run("import", file, "--dir", target)
    assert refused.exit_code == 1
    assert "--add-identity" in refused.stderr
    said = run_json("import", file, "--dir", target, "--add-identity")
    assert (said["blocks"], said["new_blocks"], said["identity"]) == (3, 3, IDENTITY.short)
    with open_store(Path(target)) as store:
        assert list(stored_keys(store)) == keys_of(1, 2, 3)
        assert all(read_block(store, key) for key in keys_of(1, 2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "identity in .*: 2 match"),
        (["--identity", "zz"], "identity 'zz' in .*: there is none"),
        (["--identity", IDENTITY.short, "--session", "zz"], "session 'zz' in .*: there is none"),
    ],
)
def test_export_says_what_it_cannot_find(blocks: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run("export", str(tmp_path / "file"), *arguments)
    assert done.exit_code == 1
    assert re.search(message, done.stderr)
    assert not (tmp_path / "file").exists()


def test_import_of_a_damaged_file_adds_nothing(blocks: Path, tmp_path: Path) -> None:
    file = tmp_path / "all"
    run_json("export", str(file), "--identity", IDENTITY.short)
    content = bytearray(file.read_bytes())
    content[-RECORD_BYTES] ^= 4
    file.write_bytes(content)
    run_json("prune", "--identity", IDENTITY.short, "--yes")
    done = run("import", str(file), "--add-identity")
    assert done.exit_code == 1
    assert "Nothing was imported" in done.stderr
    assert left(blocks) == set()
    missing = run("import", str(tmp_path / "none"))
    assert (missing.exit_code, "error: " in missing.stderr) == (1, True)


@pytest.mark.parametrize("option", ["--session", "--identity"])
def test_an_export_of_an_empty_name_is_refused(blocks: Path, tmp_path: Path, option: str) -> None:
    done = run("export", str(tmp_path / "out.fhb"), option, "")
    assert done.exit_code == 2
    assert f"{option} is empty" in done.output
    assert not (tmp_path / "out.fhb").exists()
