"""`freehold serve`: the port first, then the model, then an address and a request to paste."""

from __future__ import annotations

import json
import shlex
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from freehold.cache import StoreLock
from freehold.cli import cmd_serve, served_model
from freehold.cli.main import main
from freehold.core.errors import ModelNotFoundError
from freehold.server import run
from freehold.server.operation.options import ServerOptions
from support.fake_llm import FakeLLM


class FakeServedModel:
    """Stands where the engine's thread would be; counts how often it was closed. warmed: what had been said by then."""

    closed = 0
    warmed: int | None = None

    def __init__(self, llm: FakeLLM) -> None:
        self.llm = llm

    def __enter__(self) -> FakeServedModel:
        return self

    def warm(self) -> None:
        self.warmed = time.monotonic_ns()

    def __exit__(self, *exception: object) -> None:
        type(self).closed += 1


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Let `freehold serve` run with a fake model; what it would have served with."""
    got: dict[str, Any] = {}

    def serve(backend: FakeServedModel, *, listener: socket.socket, on_ready: Any, **options: Any) -> bool:
        got.update(options, backend=backend, address=listener.getsockname())
        got["ready"] = time.monotonic_ns()
        if backend.warmed is not None:
            raise AssertionError("warmed before it was ready")
        on_ready(run.server_url(listener))
        return bool(got.pop("ended_well", True))

    monkeypatch.setattr(run, "serve", serve)
    monkeypatch.setattr(cmd_serve, "opened", FakeLLM().opened)
    monkeypatch.setattr(served_model, "ServedModel", FakeServedModel)
    monkeypatch.delenv("FREEHOLD_API_KEY", raising=False)
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    FakeServedModel.closed = 0
    return got


def test_blocks_are_kept_in_the_data_directory(served: dict[str, Any], tmp_path: Path) -> None:
    CliRunner().invoke(main, ["serve", "--port", "0"])
    assert served["backend"].llm.options["store_dir"] == str(tmp_path / "blocks")


def test_no_store_keeps_nothing(served: dict[str, Any], tmp_path: Path) -> None:
    CliRunner().invoke(main, ["serve", "--port", "0", "--no-store"])
    assert served["backend"].llm.options["store_dir"] is None
    assert not (tmp_path / "blocks").exists()
    done = CliRunner().invoke(main, ["serve", "--port", "0", "--no-store", "--store-dir", "x"])
    assert done.exit_code == 2
    assert "exclude each other" in done.stderr


def test_a_second_server_says_that_it_keeps_nothing(served: dict[str, Any], tmp_path: Path) -> None:
    lock = StoreLock(tmp_path / "blocks")
    done = CliRunner().invoke(main, ["serve", "--port", "0"])
    lock.close()
    assert done.exit_code == 0
    assert f"Blocks are not kept on the disk: the block store {tmp_path / 'blocks'} is in use by process" in done.stderr
    assert served["backend"].llm.options["store_dir"] is None


def test_shown_defaults_are_the_servers() -> None:
    assert (run.DEFAULT_HOST, str(run.DEFAULT_PORT)) == (cmd_serve.SHOWN_HOST, cmd_serve.SHOWN_PORT)


def test_prints_the_address_and_a_request_to_paste(served: dict[str, Any]) -> None:
    done = CliRunner().invoke(main, ["serve", "--port", "0"])
    assert done.exit_code == 0, done.output
    url = f"http://127.0.0.1:{served['address'][1]}"
    assert f"Serving fake on {url}/v1" in done.stdout
    command = shlex.split(done.stdout.splitlines()[-1].removeprefix("Try: "))
    assert command[:2] == ["curl", f"{url}/v1/chat/completions"]
    assert json.loads(command[-1])["model"] == "fake"


def test_says_what_was_loaded(served: dict[str, Any]) -> None:
    assert FakeLLM.description in CliRunner().invoke(main, ["serve", "--port", "0"]).stderr


def test_closes_the_model_at_the_end(served: dict[str, Any]) -> None:
    CliRunner().invoke(main, ["serve", "--port", "0"])
    assert FakeServedModel.closed == 1


@pytest.mark.parametrize("by_variable", [True, False])
def test_key_is_used_and_never_printed(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    arguments = ["serve", "--port", "0"]
    if by_variable:
        monkeypatch.setenv("FREEHOLD_API_KEY", "s3cret-word")
    else:
        arguments += ["--api-key", "s3cret-word"]
    done = CliRunner().invoke(main, arguments)
    assert served["keys"].find("s3cret-word").name == "api-key"
    assert "s3cret-word" not in done.output
    assert '"Authorization: Bearer $FREEHOLD_API_KEY"' in done.stdout


def test_aliases_are_passed_on(served: dict[str, Any]) -> None:
    CliRunner().invoke(main, ["serve", "--port", "0", "--alias", "gpt-4o", "--alias", "mine"])
    assert served["aliases"] == ("gpt-4o", "mine")


def test_taken_port_is_known_before_the_model_is_opened(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cmd_serve, "opened", lambda *_, **__: pytest.fail("the model was opened"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = CliRunner().invoke(main, ["serve", "--port", str(port)])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: port {port} of 127.0.0.1 is in use")


def test_other_machines_need_a_key(served: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmd_serve, "opened", lambda *_, **__: pytest.fail("the model was opened"))
    done = CliRunner().invoke(main, ["serve", "--host", "0.0.0.0", "--port", "0"])
    assert done.exit_code == 1
    assert "--api-key" in done.stderr
    assert served == {}


def test_port_is_free_again_when_the_model_cannot_be_opened(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def missing(*_: Any, **__: Any) -> Any:
        raise ModelNotFoundError("no model 'x'")

    monkeypatch.setattr(cmd_serve, "opened", missing)
    assert CliRunner().invoke(main, ["serve", "--port", str(port)]).stderr == "error: no model 'x'\n"
    socket.create_server(("127.0.0.1", port)).close()


def test_other_machines_may_be_served_with_a_key_of_the_file(served: dict[str, Any], tmp_path: Path) -> None:
    made = CliRunner().invoke(main, ["keys", "add", "laptop"])
    assert CliRunner().invoke(main, ["serve", "--host", "0.0.0.0", "--port", "0"]).exit_code == 0
    assert served["keys"].find(made.stdout.strip()).name == "laptop"
    assert CliRunner().invoke(main, ["keys", "revoke", "laptop"]).exit_code == 0
    assert "no API key" in CliRunner().invoke(main, ["serve", "--host", "0.0.0.0", "--port", "0"]).stderr


def test_options_reach_the_server(served: dict[str, Any]) -> None:
    arguments = "--drain-seconds 3 --behind-proxy 10.0.0.0/8 --root-path /llm --cors-origin https://a.example"
    done = CliRunner().invoke(main, ["serve", "--port", "0", *arguments.split(), "--log-format", "json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stderr.splitlines()[-1])["url"].endswith("/llm/v1")
    assert served["options"] == ServerOptions(
        drain_seconds=3.0,
        behind_proxy=("10.0.0.0/8",),
        root_path="/llm",
        cors_origin=("https://a.example",),
        log_format="json",
    )


def test_what_the_first_grammar_needs_is_made_once_requests_are_answered(served: dict[str, Any]) -> None:
    assert CliRunner().invoke(main, ["serve", "--port", "0"]).exit_code == 0
    assert served["backend"].warmed >= served["ready"]


def lines_of_json(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit status, and all that `freehold serve --log-format json` writes."""
    done = CliRunner().invoke(main, ["serve", "--port", "0", "--log-format", "json", *arguments])
    return done.exit_code, [json.loads(line) for line in done.output.splitlines()]


def test_every_line_is_json_where_the_log_is(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(FakeLLM, "sampling_defaults", {"temperature": 0.5})
    (tmp_path / "budgets" / "budgets.sqlite").mkdir(parents=True)  # so that it cannot be opened
    lock = StoreLock(tmp_path / "blocks")
    status, lines = lines_of_json()
    lock.close()
    messages = [line["message"] for line in lines]
    assert status == 0
    assert messages[0].startswith("Blocks are not kept on the disk")
    assert messages[1].startswith("Used tokens are not kept on the disk")
    assert messages[2:] == [FakeLLM.description, "sampling, where a request does not say: temperature 0.5", "ready"]
    assert lines[-1]["url"] == f"http://127.0.0.1:{served['address'][1]}/v1"
    assert {line["level"] for line in lines} == {"info"}


@pytest.mark.parametrize(
    ("error", "level", "message"),
    [(ModelNotFoundError("no model 'x'"), "error", "no model 'x'"), (ValueError("a prompt"), "critical", "the server")],
)
def test_a_start_that_fails_says_so_in_json(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception, level: str, message: str
) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(cmd_serve, "opened", missing)
    status, (line,) = lines_of_json()
    assert (status, line["level"]) == (1, level)
    assert line["message"].startswith(message)
    assert "a prompt" not in str(line)


def test_fetching_the_model_is_told_in_json(served: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fetching(model: str | None, engine: dict[str, Any], shown: Any) -> Any:
        with shown("small") as report:
            for done in range(3):
                report("downloading", done, 3)
            report("checking", 1, None)
        return FakeLLM().opened(model, engine)

    monkeypatch.setattr(cmd_serve, "opened", fetching)
    status, lines = lines_of_json()
    assert status == 0
    assert [line["message"] for line in lines][:2] == ["downloading small", "checking small"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cors-origin", "*"], "cors_origin is '*'"),
        (["--behind-proxy", "everyone"], "behind_proxy is 'everyone'"),
        (["--root-path", "llm/"], "root_path is 'llm/'"),
        (["--max-connections", "0"], "max_connections is 0"),
        (["--header-seconds", "inf"], "header_seconds is inf"),
        (["--tls-cert", "x.pem"], "belong together"),
    ],
)
def test_wrong_options_are_wrong_usage(served: dict[str, Any], arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["serve", "--port", "0", *arguments])
    assert (done.exit_code, said in done.stderr) == (2, True), done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tls-cert", "missing.pem", "--tls-key", "missing.pem"], "the TLS certificate missing.pem cannot be read"),
        (["--keys-file", "missing.json"], "there is no key file missing.json"),
        (["--max-connections", "1000000000"], "open files"),
    ],
)
def test_what_cannot_work_is_known_before_the_model_is_opened(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(cmd_serve, "opened", lambda *_, **__: pytest.fail("the model was opened"))
    done = CliRunner().invoke(main, ["serve", "--port", "0", *arguments])
    assert (done.exit_code, said in done.stderr) == (1, True), done.output


def test_the_exit_status_tells_that_requests_were_cut_off(served: dict[str, Any]) -> None:
    served["ended_well"] = False
    done = CliRunner().invoke(main, ["serve", "--port", "0"])
    assert done.exit_code == 1
    assert "cut off" in done.stderr
