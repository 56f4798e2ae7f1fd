"""The memory of answers: what is found again, by whom, after which accidents, and within which bounds."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import freehold
from freehold.core.errors import ArgumentError
from freehold.engine.replies import Replies
from freehold.engine.reply_file import REPLIES_NAME
from freehold.model.chat_replay import Reply
from support.tiny_m3 import SHAPES, write_tiny_m3

KEY = bytes(32)


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def reply(*ids: int) -> Reply:
    return Reply(array("i", ids), "]~b]ai\n")


def test_an_answer_is_found_by_its_key() -> None:
    with Replies("m") as replies:
        replies.remember(KEY, reply(1, 2), "")
        assert replies.recall(KEY, None) == reply(1, 2)
        assert replies.recall(key(1), None) is None


@pytest.mark.parametrize("restarted", [False, True])
def test_reasoning_chooses_and_without_it_the_latest_comes(tmp_path: Path, restarted: bool) -> None:
    replies = Replies("m", directory=tmp_path)
    for reasoning, ids in (("a", 1), ("b", 2), ("a", 3)):
        replies.remember(KEY, reply(ids), reasoning)
    if restarted:
        replies.close()
        replies = Replies("m", directory=tmp_path)
    assert [replies.recall(KEY, r) for r in ("a", "b", "c", None)] == [reply(3), reply(2), None, reply(3)]
    replies.close()


def test_a_directory_need_not_have_a_name_in_utf_8(tmp_path: Path) -> None:
    for expected in (None, reply(1)):
        with Replies("m", directory=tmp_path / os.fsdecode(b"\xff")) as replies:
            assert replies.recall(KEY, None) == expected
            replies.remember(KEY, reply(1), "")


def test_another_model_finds_nothing(tmp_path: Path) -> None:
    with Replies("m", directory=tmp_path) as replies:
        replies.remember(KEY, reply(1), "")
    with Replies("n", directory=tmp_path) as replies:
        assert replies.recall(KEY, None) is None
    with Replies("m", directory=tmp_path) as replies:
        assert replies.recall(KEY, None) == reply(1)


CHILD = """
import sys, time
from array import array
from pathlib import Path
from freehold.engine.replies import Replies
from freehold.model.chat_replay import Reply
replies = Replies("m", directory=Path(sys.argv[1]))
first = int(sys.argv[2])
for number in range(first, first + 200):
    replies.remember(number.to_bytes(32, "little"), Reply(array("i", [number]), "o"), "")
replies.flush()
print("written", replies.stats().given_up, flush=True)
time.sleep(60)
"""


def child(directory: Path, first: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(directory), str(first)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_answers_outlive_a_killed_process_and_two_write_one_file(tmp_path: Path) -> None:
    children = [child(tmp_path, 1000), child(tmp_path, 2000)]
    for process in children:
        assert process.stdout is not None
        assert process.stdout.readline() == "written 0\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with Replies("m", directory=tmp_path) as replies:
        for number in (*range(1000, 1200), *range(2000, 2200)):
            assert replies.recall(key(number), None) == Reply(array("i", [number]), "o")


def test_a_second_process_sees_what_the_first_has_written(tmp_path: Path) -> None:
    with Replies("m", directory=tmp_path) as one, Replies("m", directory=tmp_path) as two:
        one.remember(KEY, reply(1), "")
        one.flush()
        assert two.recall(KEY, None) == reply(1)
        two.remember(key(1), reply(2), "")
        two.flush()
        assert one.recall(key(1), None) == reply(2)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    with Replies("m", directory=tmp_path / "new") as replies:
        replies.remember(KEY, reply(1), "")
        replies.flush()
        assert {path.stat().st_mode & 0o077 for path in (tmp_path / "new").iterdir()} == {0}


# -- accidents -----------------------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def filled(directory: Path) -> Path:
    with Replies("m", directory=directory) as replies:
        for number in range(500):
            replies.remember(key(number), reply(*range(100)), "")
    return directory / REPLIES_NAME


@pytest.mark.parametrize("damage", ["no database", "another table", "zeros"])
def test_a_damaged_file_is_set_aside_and_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = filled(tmp_path)
    if damage == "another table":
        path.unlink()
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE replies (x)")
        database.close()
    else:
        path.write_bytes(b"no database" * 1000 if damage == "no database" else bytes(path.stat().st_size))
    with Replies("m", directory=tmp_path) as replies:
        assert replies.recall(KEY, None) is None
        replies.remember(KEY, reply(7), "")
    assert len(warnings(caplog)) == 1
    with Replies("m", directory=tmp_path) as replies:
        assert replies.recall(KEY, None) == reply(7)
    assert len(warnings(caplog)) == 1
    assert (tmp_path / "replies-1.damaged.sqlite").exists()


def test_damage_in_the_middle_costs_only_recognition(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = filled(tmp_path)
    data = bytearray(path.read_bytes())
    data[4096 * 2 :] = b"\xff" * (len(data) - 4096 * 2)
    path.write_bytes(data)
    with Replies("m", directory=tmp_path) as replies:
        assert [replies.recall(key(number), None) for number in range(500)] == [None] * 500
        for number in range(3):
            replies.remember(key(number), reply(number), "")
            replies.flush()
            assert replies.recall(key(number), None) == reply(number)
    assert warnings(caplog)
    assert len(warnings(caplog)) == len(set(warnings(caplog)))
    with Replies("m", directory=tmp_path) as replies:
        assert replies.recall(key(2), None) == reply(2)


def test_a_flipped_bit_is_no_answer(tmp_path: Path) -> None:
    path = filled(tmp_path)
    database = sqlite3.connect(path)
    (ids,) = database.execute("SELECT ids FROM replies LIMIT 1").fetchone()
    database.execute("UPDATE replies SET ids = ?", (bytes([ids[0] ^ 1]) + ids[1:],))
    database.commit()
    database.close()
    with Replies("m", directory=tmp_path) as replies:
        assert replies.recall(key(3), None) is None


def test_a_locked_file_costs_only_recognition(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = filled(tmp_path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
    other.execute("BEGIN EXCLUSIVE")
    other.execute("DELETE FROM replies WHERE made = 0")
    start = time.monotonic()
    replies = Replies("m", directory=tmp_path)
    assert [replies.recall(key(number), None) for number in range(100)] == [None] * 100
    replies.remember(key(1000), reply(1), "")
    assert replies.recall(key(1000), None) == reply(1)
    assert time.monotonic() - start < 2
    assert len(warnings(caplog)) == 1
    other.close()
    replies.close()
    assert replies.stats().written == 1


def test_a_directory_that_cannot_be_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with Replies("m", directory=tmp_path / "file") as replies:
        replies.remember(KEY, reply(1), "")
        replies.flush()
        assert replies.recall(KEY, None) == reply(1)
        assert replies.recall(key(1), None) is None
        assert replies.stats().on_disk is False
        assert replies.stats().given_up == 1
    assert len(warnings(caplog)) == 1


# -- bounds --------------------------------------------------------------------------------------------------


def test_ram_is_bounded_and_the_least_used_goes_first() -> None:
    replies = Replies("m", ram_bytes=100_000)
    for number in range(1000):
        replies.remember(key(number), reply(*range(20)), "")
        assert replies.recall(KEY, None) is not None
        assert replies.stats().nbytes <= 100_000
    assert replies.recall(key(1), None) is None
    assert replies.recall(key(999), None) is not None
    assert 100 < replies.stats().num_replies < 200


def test_the_file_is_bounded_and_the_least_used_goes_first(tmp_path: Path) -> None:
    with Replies("m", directory=tmp_path, ram_bytes=0, disk_bytes=1 << 20) as replies:
        for number in range(40):
            for part in range(10):
                replies.remember(key(100 * number + part), reply(*range(2000)), "")
            replies.flush()
            assert (tmp_path / REPLIES_NAME).stat().st_size < 1.2 * (1 << 20)
        assert replies.recall(KEY, None) is None
        assert replies.recall(key(3909), None) == reply(*range(2000))
        assert replies.stats().given_up == 0


def test_a_reply_in_use_stays_in_the_file(tmp_path: Path) -> None:
    with Replies("m", directory=tmp_path, disk_bytes=1 << 20) as replies:
        replies.remember(KEY, reply(1), "")
    with Replies("m", directory=tmp_path, disk_bytes=1 << 20) as replies:
        for number in range(1, 161):
            if number == 50:
                assert replies.recall(KEY, None) == reply(1)
            replies.remember(key(number), reply(*range(2000)), "")
            replies.flush()
    with Replies("m", directory=tmp_path, disk_bytes=1 << 20) as replies:
        assert replies.recall(key(1), None) is None
        assert replies.recall(KEY, None) == reply(1)


@pytest.mark.parametrize("limits", [{"ram_bytes": -1}, {"disk_bytes": 1000}])
def test_senseless_limits_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(limits))):
        Replies("m", **limits)


def test_after_closing_ram_still_serves(tmp_path: Path) -> None:
    replies = Replies("m", directory=tmp_path)
    replies.remember(KEY, reply(1), "")
    replies.close()
    replies.close()
    assert replies.recall(KEY, None) == reply(1)
    replies.remember(key(1), reply(2), "")
    assert replies.recall(key(1), None) == reply(2)
    assert replies.recall(key(2), None) is None


def test_several_threads(tmp_path: Path) -> None:
    with Replies("m", directory=tmp_path, ram_bytes=20_000) as replies:

        def work(first: int) -> bool:
            for number in range(first, first + 100):
                replies.remember(key(number), reply(number), "")
            replies.flush()
            return all(replies.recall(key(number), "") == reply(number) for number in range(first, first + 100))

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(0, 800, 100)))
        assert replies.stats().recalled == 800


# -- in an engine --------------------------------------------------------------------------------------------


def test_the_cache_has_every_block_of_a_conversation_that_comes_back_after_a_restart(tmp_path: Path) -> None:
    write_tiny_m3(SHAPES["two_local_blocks"], tmp_path / "model")
    messages = [{"role": "user", "content": "hello wide world"}]
    with freehold.LLM(tmp_path / "model", store_dir=str(tmp_path / "store")) as llm:
        prompt = llm.chat_encoder.encode(messages)
        said = llm.generate(prompt.ids, temperature=1.0, seed=1, max_tokens=40, ignore_eos=True)
        llm.chat_encoder.remember(prompt, {"content": said.text, "reasoning_content": "odd"}, said.token_ids)
        block_tokens = llm.engine.cache.stats().block_tokens
    messages += [{"role": "assistant", "content": said.text.strip()}, {"role": "user", "content": "on"}]
    with freehold.LLM(tmp_path / "model", store_dir=str(tmp_path / "store")) as llm:
        ids = llm.render_chat(messages)
        computed = [*prompt.ids, *said.token_ids]
        assert ids[: len(computed)] == computed
        cached = llm.generate(ids, max_tokens=1).usage.cached_tokens
    assert cached >= (len(computed) - 1) // block_tokens * block_tokens > len(prompt.ids)
