"""`freehold chat`: a conversation that is remembered, from a terminal and from a pipe."""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Generator, Sequence

import pytest
from click.testing import CliRunner, Result

from freehold.cli.cmd_chat import Conversation, converse
from freehold.cli.main import main
from freehold.core.events import Event, TokenEvent
from freehold.core.sampling import SamplingParams
from support.fake_llm import FakeLLM


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    fake = FakeLLM()
    monkeypatch.setattr("freehold.cli.cmd_chat.opened", fake.opened)
    return fake


def piped(*arguments: str, lines: str) -> Result:
    return CliRunner().invoke(main, ["chat", *arguments], input=lines)


def type_lines(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """Let `input` return these lines, or raise, one after another; then the end of the input."""
    waiting = list(lines)

    def read(prompt: str) -> str:
        line = waiting.pop(0) if waiting else EOFError
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", read)


def conversation(llm: FakeLLM, system: str | None = None) -> Conversation:
    return Conversation(llm, SamplingParams(max_tokens=3), system)  # type: ignore[arg-type]


def test_each_line_of_a_pipe_is_answered_with_the_history(llm: FakeLLM) -> None:
    done = piped("--max-tokens", "3", lines="one\n\ntwo\n")
    assert (done.exit_code, done.stdout) == (0, "USE\nUSE\n")
    assert llm.prompts == ["user: one\nassistant: ", "user: one\nassistant: USE\nuser: two\nassistant: "]


def test_each_answer_says_how_fast_it_was(llm: FakeLLM) -> None:
    done = piped("--max-tokens", "3", lines="one\ntwo\n")
    assert done.stderr.count("answer 3 tokens, 8.0 tokens/s") == 2


def test_system_message_comes_first(llm: FakeLLM) -> None:
    piped("--system", "be kind", lines="hi\n")
    assert llm.prompts == ["system: be kind\nuser: hi\nassistant: "]


def test_error_of_a_piped_message_ends_with_status_1(llm: FakeLLM) -> None:
    done = piped(lines="x" * 300 + "\nnever asked\n")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: the prompt has")
    assert llm.prompts == []


def test_reset_forgets_all_but_the_system_message(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    type_lines(monkeypatch, "one", "/reset", "two", "/exit", "three")
    converse(conversation(llm, "be kind"))
    assert llm.prompts == [
        "system: be kind\nuser: one\nassistant: ",
        "system: be kind\nuser: two\nassistant: ",
    ]


def test_unknown_commands_are_not_sent_to_the_model(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch, "/resett now", "", "  ")
    converse(conversation(llm))
    assert llm.prompts == []
    assert "/resett is no command" in capsys.readouterr().err


def test_ctrl_c_at_the_prompt_does_not_end_the_program(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    type_lines(monkeypatch, KeyboardInterrupt, "one")
    converse(conversation(llm))
    assert len(llm.prompts) == 1


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = llm.events

    def events(prompt_ids: Sequence[int], params: SamplingParams, **_: object) -> Generator[Event, None, None]:
        for event in real(prompt_ids, params):
            if isinstance(event, TokenEvent) and event.text == "S" and len(llm.prompts) == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield event

    monkeypatch.setattr(llm, "events", events)
    type_lines(monkeypatch, "one", "two")
    converse(conversation(llm))
    assert llm.prompts[1] == "user: one\nassistant: US\nuser: two\nassistant: "
    assert "[stopped]" in capsys.readouterr().err


def test_message_that_fails_is_forgotten(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch, "one", "x" * 300, "two")
    converse(conversation(llm))
    assert llm.prompts == ["user: one\nassistant: ", "user: one\nassistant: USE\nuser: two\nassistant: "]
    assert "error: the prompt has" in capsys.readouterr().err
