"""`freehold policy`: what is shipped can be read and tried, and a request explained without being sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from freehold.cli.main import main
from freehold.cli.policy_files import SHOWN_PROFILES
from freehold.governance.policy.profiles import PROFILES
from support.gateway_rig import endpoints_toml


def policy(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["policy", *arguments])


def test_shown_profiles_are_the_shipped_ones() -> None:
    assert SHOWN_PROFILES == PROFILES


def test_all_shipped_cases_come_out() -> None:
    done = policy("test", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["wrong"] == 0
    assert {case["table"] for case in report["cases"]} == {f"profile {name}" for name in PROFILES}


def test_what_is_shown_can_be_used(tmp_path: Path) -> None:
    for part, name in (("policy", "own.cedar"), ("classes", "classes.toml"), ("cases", "cases.toml")):
        (tmp_path / name).write_text(policy("show", "product-company", "--part", part).stdout)
    files = ["--policy", str(tmp_path / "own.cedar"), "--classes", str(tmp_path / "classes.toml")]
    assert policy("test", str(tmp_path / "cases.toml"), *files).exit_code == 0
    # Under the policy of another shop the same cases come out otherwise.
    other = policy("test", str(tmp_path / "cases.toml"), "--profile", "open-source")
    assert other.exit_code == 1
    assert "WRONG  own code stays" in other.stdout
    assert "secrets-stay" in policy("show", "open-source", "--part", "base").stdout
    assert "entity Endpoint" in policy("show", "open-source", "--part", "schema").stdout


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A request with a card in a tool's arguments, and endpoints, whose keys are not needed."""
    body = tmp_path / "body.json"
    arguments = json.dumps({"number": "4111 1111 1111 1111"})
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "pay", "arguments": arguments}}]}
    body.write_text(json.dumps({"model": "m3", "messages": [message]}))
    outside = {"jurisdictions": ["US"], "data_countries": ["US"], "retention_days": 0, "training_use": "no"}
    endpoints = endpoints_toml(
        tmp_path,
        {"name": "api", "base_url": "https://api.example/v1", "api": "openai", "models": ["m3"], "path": "vendor-api",
         "facts": outside, "key_env": "NOT_SET_HERE"},
        {"name": "home", "base_url": "http://127.0.0.1:8000", "api": ["openai", "anthropic"], "models": ["m3"],
         "path": "self-hosted"},
    )  # fmt: skip
    return body, endpoints


def test_a_request_is_explained(files: tuple[Path, Path]) -> None:
    body, endpoints = files
    done = policy("explain", str(body), "--endpoints", str(endpoints), "--profile", "regulated-finance", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["class"], report["findings"]) == ("regulated", {"payment-card": 1})
    assert [(d["endpoint"], d["allowed"], d["clause"]) for d in report["decisions"]] == [
        ("api", False, "regulated-stays"),
        ("home", True, "own-hardware"),
    ]
    assert "payment-data-stays" in report["decisions"][0]["clauses"]
    text = policy("explain", str(body), "--endpoints", str(endpoints), "--profile", "open-source", "--endpoint", "api")
    assert "denied by no-permit" in text.stdout
    assert "nowhere" in text.stdout
    assert "4111" not in text.stdout
    raised = policy(
        "explain", str(body), "--endpoints", str(endpoints), "--profile", "open-source", "--declared", "secret"
    )
    assert "class     secret" in raised.stdout


def test_a_stream_that_the_gateway_refuses_is_not_explained(files: tuple[Path, Path]) -> None:
    body, endpoints = files
    body.write_text(json.dumps({**json.loads(body.read_text()), "stream": "true"}))
    done = policy("explain", str(body), "--endpoints", str(endpoints), "--profile", "open-source")
    assert done.exit_code != 0
    assert "stream is neither true nor false" in done.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["explain", "BODY", "--endpoints", "ENDPOINTS"], "--profile"),
        (["explain", "ENDPOINTS", "--endpoints", "ENDPOINTS", "--profile", "open-source"], "no JSON"),
        (["explain", "BODY", "--endpoints", "BODY", "--profile", "open-source"], "is no TOML"),
        (["explain", "BODY", "--endpoints", "ENDPOINTS", "--profile", "open-source", "--endpoint", "x"], "is x"),
        (["test", "BODY", "--profile", "open-source"], "is no TOML"),
        (["test", "--policy", "BODY"], "no table of cases"),
        (["test", "nowhere.toml", "--profile", "open-source"], "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named(files: tuple[Path, Path], arguments: list[str], says: str) -> None:
    names = {"BODY": str(files[0]), "ENDPOINTS": str(files[1])}
    done = policy(*(names.get(word, word) for word in arguments))
    assert done.exit_code in (1, 2)
    assert says in done.output
