"""`freehold generate`: the text on stdout, what it took on stderr."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from freehold.cli.answer import Interrupt, decode_speed, follow, interruptible, prefill_speed
from freehold.cli.main import main
from freehold.core.errors import RequestError
from freehold.core.events import Event, FinishEvent, PrefillEvent, TokenEvent, Usage
from freehold.core.sampling import SamplingParams
from support.fake_llm import FakeLLM


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    fake = FakeLLM()
    monkeypatch.setattr("freehold.cli.cmd_generate.opened", fake.opened)
    return fake


def generate(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(main, ["generate", *arguments], input=typed)


def test_prompt_is_continued_as_it_stands(llm: FakeLLM) -> None:
    done = generate("--prompt", "one two")
    assert (done.exit_code, done.stdout) == (0, "ONE TWO\n")
    assert llm.prompts == ["one two"]


def test_line_end_is_not_doubled(llm: FakeLLM) -> None:
    assert generate("--prompt", "one\n").stdout == "ONE\n"


def test_prompt_comes_from_a_file_or_stdin(llm: FakeLLM, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("from a file")
    assert generate("--file", str(tmp_path / "prompt.txt")).stdout == "FROM A FILE\n"
    assert generate(typed="from stdin").stdout == "FROM STDIN\n"
    assert generate("--file", "-", typed="by dash").stdout == "BY DASH\n"


def test_chat_uses_the_chat_format(llm: FakeLLM) -> None:
    generate("--chat", "--system", "be kind", "--prompt", "hi")
    assert llm.prompts == ["system: be kind\nuser: hi\nassistant: "]


def test_counts_and_speeds_are_on_stderr(llm: FakeLLM) -> None:
    done = generate("--prompt", "eight888", "--max-tokens", "6")
    assert done.stdout == "EIGHT8\n"
    assert "prompt 8 tokens (4 cached, 8.0 tokens/s)" in done.stderr
    assert "answer 6 tokens, 20.0 tokens/s, ended by max_tokens" in done.stderr


def test_json_is_all_that_stdout_holds(llm: FakeLLM) -> None:
    done = generate("--prompt", "eight888", "--max-tokens", "6", "--json")
    assert json.loads(done.stdout) == {
        "text": "EIGHT8",
        "finish_reason": "length",
        "usage": {
            "prompt_tokens": 8,
            "cached_tokens": 4,
            "completion_tokens": 6,
            "queued_seconds": 0.0,
            "prefill_seconds": 0.5,
            "decode_seconds": 0.25,
            "miss": None,
        },
        "prefill_tokens_per_second": 8.0,
        "decode_tokens_per_second": 20.0,
    }


def test_sampling_options_reach_the_engine(llm: FakeLLM) -> None:
    generate("--prompt", "x", "--temperature", "0", "--stop", "a", "--stop", "b", "--logit-bias", "7=-1")
    assert llm.params == [SamplingParams(temperature=0, stop=("a", "b"), logit_bias={7: -1.0})]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", "x", "--temperature", "-1"], "temperature is -1.0; it must be between 0 and 100"),
        (["--prompt", "x", "--file", "-"], "--prompt and --file are both given"),
        (["--prompt", "x", "--system", "y"], "add --chat"),
        (["--prompt", ""], "the prompt is empty"),
        ([], "the prompt is empty"),
        (["--prompt", "x", "--temprature", "1"], "No such option"),
    ],
)
def test_wrong_usage_is_named(llm: FakeLLM, arguments: list[str], said: str) -> None:
    done = generate(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert llm.prompts == []


def test_engine_options_are_checked_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.cli.model.obtain", lambda model: pytest.fail("fetched"))
    done = generate("--prompt", "x", "--prefill-chunk", "0")
    assert done.exit_code == 2
    assert "prefill_chunk is 0; it must be at least 1" in done.stderr


def test_a_request_that_is_too_long_ends_with_status_1(llm: FakeLLM) -> None:
    done = generate("--prompt", "x" * 300)
    assert done.exit_code == 1
    assert done.stderr == "error: the prompt has 300 tokens; the context 200\n"


def test_an_answer_that_fails_ends_with_status_1(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(prompt_ids: Sequence[int], params: SamplingParams, **_: object) -> Generator[Event, None, None]:
        yield TokenEvent("r", 1, "so far")
        yield FinishEvent("r", "error", Usage(1), error="the disk is gone")

    monkeypatch.setattr(llm, "events", broken)
    done = generate("--prompt", "x")
    assert done.exit_code == 1
    assert done.stdout.startswith("so far")
    assert "error: the answer failed: the disk is gone" in done.stderr


def stopping(llm: FakeLLM, at: type[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C when the first event of a kind comes."""
    real = llm.events

    def events(prompt_ids: Sequence[int], params: SamplingParams, **_: object) -> Generator[Event, None, None]:
        inner = real(prompt_ids, params)
        pressed = False
        try:
            for event in inner:
                if isinstance(event, at) and not pressed:
                    pressed = True
                    os.kill(os.getpid(), signal.SIGINT)
                yield event
        finally:
            inner.close()

    monkeypatch.setattr(llm, "events", events)


@pytest.mark.parametrize(("at", "stdout"), [(PrefillEvent, "\n"), (TokenEvent, "O\n")])
def test_ctrl_c_cancels_the_request_and_ends_with_130(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, at: Any, stdout: str
) -> None:
    stopping(llm, at, monkeypatch)
    done = generate("--prompt", "one two")
    assert (done.exit_code, done.stdout) == (130, stdout)
    assert "[stopped]" in done.stderr
    assert llm.closed_early == 1


def test_second_ctrl_c_ends_the_program_at_once() -> None:
    with interruptible() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.pressed
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_means_what_it_meant_before_and_after() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_text_that_was_held_back_belongs_to_the_answer() -> None:
    def events() -> Generator[Event, None, None]:
        yield TokenEvent("r", 1, "a")
        yield TokenEvent("r", 2, "")
        yield FinishEvent("r", "stop", Usage(1), text="bc")

    written = io.StringIO()
    answer = follow(events(), written.write, Interrupt())
    assert answer.text == written.getvalue() == "abc"


def test_stopped_answer_is_cancelled_at_once() -> None:
    """Also while somebody still holds the events."""
    events = FakeLLM().events(list(b"a prompt"), SamplingParams())
    answer = follow(events, lambda text: None, Interrupt(pressed=True))
    assert (answer.text, answer.reason, answer.usage) == ("", "cancelled", None)
    assert list(events) == []


def test_failure_of_a_request_is_an_error() -> None:
    def events() -> Generator[Event, None, None]:
        yield FinishEvent("r", "error", Usage(1))

    with pytest.raises(RequestError, match="the engine gave no reason"):
        follow(events(), lambda text: None, Interrupt())


def test_speeds_count_what_was_computed() -> None:
    usage = Usage(100, cached_tokens=60, completion_tokens=11, prefill_seconds=2.0, decode_seconds=5.0)
    assert prefill_speed(usage) == 20.0
    assert decode_speed(usage) == 2.0  # the first token's time belongs to the prefill


@pytest.mark.parametrize("usage", [Usage(5, 5, 1), Usage(5, 0, 0)])
def test_what_was_not_measured_has_no_speed(usage: Usage) -> None:
    assert prefill_speed(usage) is None
    assert decode_speed(usage) is None


@pytest.mark.parametrize(("arguments", "wanted"), [([], (0.2, 0.9)), (["--temperature", "1.0"], (1.0, 0.9))])
def test_the_model_s_own_sampling_counts_unless_an_option_is_given(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, arguments: list[str], wanted: tuple[float, float]
) -> None:
    monkeypatch.setattr(FakeLLM, "sampling_defaults", {"temperature": 0.2, "top_p": 0.9})
    assert CliRunner().invoke(main, ["generate", "--prompt", "x", *arguments]).exit_code == 0
    assert (llm.params[0].temperature, llm.params[0].top_p) == wanted
