"""Two hundred clients at once, many of which go away: nothing is left behind, and no answer is another's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.stream_client import DONE, Told, asked
from support.tiny_llama import LLAMAS, write_tiny_llama

CLIENTS = 200
PROMPTS = 24
SHORT, LONG = 20, 1800
"""Tokens of an answer: of most, and of those that take longer than the server allows."""
MEMORY_MARGIN = 24 << 20
"""Bytes by which the process may have grown: freed memory that the allocator keeps in pieces, remembered answers."""
POOLED_THREADS = 40
"""The most that the web framework keeps for blocking calls: a larger crowd may call for more than the first one did."""
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
ENDS = (DONE, "timeout")
"""How an answer may end whose client stays."""
TESTS = Path(__file__).parents[1]


class Server:
    """The child process; see `support.soak_server`."""

    def __init__(self, checkpoint: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.soak_server", str(checkpoint)],
            cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        self.port = int(self._stdout.readline().rsplit(":", 1)[1])

    def held(self) -> dict[str, Any]:
        """What the process holds at this moment."""
        self._stdin.write("look\n")
        self._stdin.flush()
        found: dict[str, Any] = json.loads(self._stdout.readline())
        return found

    def held_at_rest(self) -> dict[str, Any]:
        """The same, once the last client's going was noticed everywhere."""
        end = time.monotonic() + 10
        while True:
            found = self.held()
            quiet = not (found["busy"] or found["streams"]) and found["tasks"] <= 1
            if quiet or time.monotonic() > end:
                return found
            time.sleep(0.1)

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def end(self) -> None:
        """Ends the server, in good order."""
        self._stdin.close()
        assert json.loads(self._stdout.readline()) == {"ended_well": True}
        assert self.process.wait(30) == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_tiny_llama(LLAMAS["plain"], tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    server = Server(tmp_path)
    try:
        yield server
    finally:
        server.close()


@dataclass(frozen=True)
class Question:
    """One request, always answered the same."""

    path: str
    number: int
    tokens: int

    def body(self) -> dict[str, Any]:
        text = f"{self.path} {self.number}: " + "the other theorem " * (self.number % 7 * 3)
        greedy = {"model": "MODEL", "temperature": 0, "stream": True}
        if self.path == "/v1/responses":
            return {**greedy, "input": text, "max_output_tokens": self.tokens}
        messages = [{"role": "user", "content": text}]
        if self.path == "/v1/messages":
            return {**greedy, "messages": messages, "max_tokens": self.tokens}
        return {**greedy, "messages": messages, "max_completion_tokens": self.tokens}


PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages")
QUESTIONS = [Question(path, number, SHORT + number % 5) for path in PATHS for number in range(PROMPTS)]


@dataclass
class Record:
    """What the clients saw."""

    fates: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    first_bytes: list[float] = field(default_factory=list)
    first_texts: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    events: int = 0

    def take(self, fate: str, told: Told) -> None:
        self.fates[fate] += 1
        self.ends[told.end or "left"] += 1
        self.events += told.events
        for seconds, kept in ((told.first_byte, self.first_bytes), (told.first_text, self.first_texts)):
            if seconds is not None:
                kept.append(seconds)


class Crowd:
    """Clients of one server. answers: what each question's answer is, asked alone; filled by `learn`."""

    def __init__(self, port: int, model: str) -> None:
        self._port, self._model = port, model
        self.answers: dict[Question, tuple[str, str | None]] = {}
        self.record = Record()

    async def learn(self) -> None:
        for question in QUESTIONS:
            async with asked(self._port, "POST", question.path, self._body(question)) as exchange:
                assert (await exchange.head()).status == 200
                async for _ in exchange.events():
                    pass
            assert exchange.told.end == DONE
            self.answers[question] = exchange.told.text, exchange.told.finish

    async def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._client(random.Random(number), end) for number in range(CLIENTS)))

    def _body(self, question: Question) -> dict[str, Any]:
        return {**question.body(), "model": self._model}

    async def _client(self, draw: random.Random, end: float) -> None:
        while time.monotonic() < end:
            question = draw.choice(QUESTIONS)
            fate = draw.choices(["stay", "leave", "break off", "delete", "long"], [50, 15, 15, 17, 3])[0]
            await self._ask(question, fate, draw)

    async def _ask(self, question: Question, fate: str, draw: random.Random) -> None:
        asked_for = Question(question.path, question.number, LONG) if fate == "long" else question
        told = Told()

        async def listen() -> None:
            nonlocal told
            async with asked(self._port, "POST", question.path, self._body(asked_for)) as exchange:
                told = exchange.told
                await exchange.head()
                await self._read(exchange, fate, draw.randint(0, SHORT))

        try:
            await asyncio.wait_for(listen(), draw.uniform(0, 1.5) if fate == "break off" else 120)
        except asyncio.TimeoutError:
            if fate != "break off":
                self.record.wrong.append(f"{question}: no end within two minutes: {told}")
        self.record.take(fate, told)
        self._check(question, fate, told)

    async def _read(self, exchange: Any, fate: str, events: int) -> None:
        async for told in exchange.events():
            if told.events < events:
                continue
            if fate == "leave":
                return
            if fate == "delete":
                fate = "deleted"
                async with asked(self._port, "DELETE", f"/v1/requests/{told.request_id}") as deletion:
                    status = (await deletion.head()).status
                if status not in (204, 404):
                    self.record.wrong.append(f"DELETE was answered with {status}")

    def _check(self, question: Question, fate: str, told: Told) -> None:
        text, finish = self.answers[question]
        whole = told.end == DONE and fate != "long"
        right = (told.text, told.finish) == (text, finish) if whole else _begin_alike(told.text, text)
        if not right:
            self.record.wrong.append(f"{question} ({fate}): {told.text!r}, {told.finish}; alone {text!r}, {finish}")
        if told.status not in (0, 200):
            self.record.wrong.append(f"{question} ({fate}): status {told.status}")
        if (
            fate == "stay"
            and told.end not in (DONE, "timeout")
            and "longer than this server allows" not in str(told.end)
        ):
            self.record.wrong.append(f"{question} ({fate}) ended with {told.end}")


def _begin_alike(a: str, b: str) -> bool:
    length = min(len(a), len(b))
    return a[:length] == b[:length]


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def soak(server: Server, model: str, seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    crowd = Crowd(server.port, model)
    asyncio.run(crowd.learn())
    assert len({text for text, _ in crowd.answers.values()}) > PROMPTS, "answers must tell questions apart"
    # What is made once and kept, such as worker threads and compiled templates, is there after a first crowd.
    asyncio.run(crowd.run(min(5.0, seconds / 3)))
    before = server.held_at_rest()
    crowd.record = record = Record()
    asyncio.run(crowd.run(seconds))
    after = server.held_at_rest()
    with capsys.disabled():
        print(
            f"\nsoak: {CLIENTS} clients, {seconds:g} s, {sum(record.fates.values())} requests {dict(record.fates)}, "
            f"ends {dict(record.ends.most_common(6))}, {record.events} events; first byte p99 "
            f"{p99(record.first_bytes):.3f} s, first text p99 {p99(record.first_texts):.3f} s; memory "
            f"{before['resident_bytes'] / 2**20:.0f} -> {after['resident_bytes'] / 2**20:.0f} MiB, files "
            f"{before['files']} -> {after['files']}, threads {before['threads']} -> {after['threads']} beside "
            f"{before['pooled_threads']} -> {after['pooled_threads']} pooled, tasks "
            f"{before['tasks']} -> {after['tasks']}, blocks {after['blocks']} = {after['blocks_free']} free + "
            f"{after['blocks_kept']} kept"
        )
    assert record.wrong == []
    assert set(record.fates) == {"stay", "leave", "break off", "delete", "long"}
    assert after["fault"] == ""
    assert after["failed_audits"] == 0
    nothing = ("busy", "streams", "waiting", "running", "sequences")
    assert {name: after[name] for name in nothing} == dict.fromkeys(nothing, 0)
    assert after["blocks_free"] + after["blocks_kept"] == after["blocks"]
    for name in ("files", "threads", "tasks"):
        assert after[name] <= before[name], name
    assert after["pooled_threads"] <= POOLED_THREADS
    assert after["resident_bytes"] - before["resident_bytes"] <= MEMORY_MARGIN
    assert board(server.port) == []
    server.end()


def board(port: int) -> list[Any]:
    async def ask() -> bytes:
        async with asked(port, "GET", "/v1/requests") as exchange:
            await exchange.head()
            return await exchange._reader.read()

    found: list[Any] = json.loads(asyncio.run(ask()))["data"]
    return found


def test_nothing_is_left_behind(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soak(server, tmp_path.name, 15, capsys)


@pytest.mark.slow
def test_nothing_is_left_behind_after_a_long_time(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soak(server, tmp_path.name, 300 if os.environ.get("FREEHOLD_PROVE") else 60, capsys)
