"""The two ends of a worker: messages, errors, and processes that die."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

import pytest

from freehold.bench.worker import serve
from freehold.bench.workers import Worker
from freehold.core.errors import FreeholdError


class Adder:
    """A side that adds."""

    def add(self, *, a: int, b: int) -> dict[str, Any]:
        return {"sum": a + b}

    def secret(self) -> dict[str, Any]:
        raise AssertionError


def answers(*messages: str) -> list[dict[str, Any]]:
    out = io.StringIO()
    serve(Adder(), ("add",), io.StringIO("".join(message + "\n" for message in messages)), out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_calls_are_answered_in_order() -> None:
    assert answers('{"call": "add", "a": 1, "b": 2}', '{"call": "add", "a": 3, "b": 4}') == [
        {"value": {"sum": 3}},
        {"value": {"sum": 7}},
    ]


def test_memory_is_known_to_every_side() -> None:
    (answer,) = answers('{"call": "memory"}')
    assert answer["value"]["peak_nbytes"] >= answer["value"]["resident_nbytes"] > 0


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ('{"call": "secret"}', "ValueError: no call 'secret'; there are memory, add"),
        ('{"call": "add", "a": 1}', "TypeError: "),
        ('{"call": "add", "a": 1, "b": 2, "c": 3}', "TypeError: "),
        ("no json", "JSONDecodeError: "),
    ],
)
def test_errors_are_answers_and_the_next_call_works(message: str, error: str) -> None:
    first, second = answers(message, '{"call": "add", "a": 1, "b": 2}')
    assert first["error"].startswith(error)
    assert second == {"value": {"sum": 3}}


ECHO = "import json, sys\nfor line in sys.stdin: print(json.dumps({'value': json.loads(line)}), flush=True)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_worker_calls_and_ends() -> None:
    with Worker("echo", command=python(ECHO)) as worker:
        assert worker.call("hello", x=[1, 2]) == {"call": "hello", "x": [1, 2]}
        assert worker.call("again") == {"call": "again"}
        process = worker._process
    assert process.returncode == 0
    worker.close()


def test_an_error_of_the_side_is_raised() -> None:
    with (
        Worker("echo", command=python(ECHO.replace("'value'", "'error'"))) as worker,
        pytest.raises(FreeholdError, match=r"echo: \{'call': 'hello'\}"),
    ):
        worker.call("hello")


def test_a_dead_process_says_its_last_words() -> None:
    code = "import sys; sys.stdin.readline(); sys.exit('out of luck')"
    with (
        Worker("echo", command=python(code)) as worker,
        pytest.raises(FreeholdError, match=r"echo: its process ended with status 1\. Its last words:\nout of luck"),
    ):
        worker.call("hello")


def test_what_a_library_prints_does_not_disturb_the_answers() -> None:
    code = (
        "import os, sys\n"
        "from freehold.bench import worker\n"
        "class Noisy:\n"
        "    def load(self):\n"
        "        os.write(1, b'from C\\n'); print('from Python', flush=True); return {'ok': True}\n"
        "sys.modules['noisy'] = type(sys)('noisy'); sys.modules['noisy'].Noisy = Noisy\n"
        "worker.SIDES['noisy'] = ('noisy', 'Noisy', ('load',))\n"
        "worker.main('noisy')\n"
    )
    with Worker("noisy", command=python(code)) as worker:
        assert worker.call("load") == {"ok": True}


def test_idle_threads_of_a_worker_may_not_be_told_to_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("FREEHOLD_MARK", "kept")
    code = "import json, os, sys\nsys.stdin.readline()\nprint(json.dumps({'value': dict(os.environ)}))"
    with Worker("echo", command=python(code)) as worker:
        environment = worker.call("environment")
    assert "OMP_WAIT_POLICY" in os.environ
    assert "OMP_WAIT_POLICY" not in environment
    assert environment["FREEHOLD_MARK"] == "kept"
