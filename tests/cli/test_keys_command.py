"""`freehold keys`: a key is shown once, kept as a hash, and can be taken back."""

from __future__ import annotations

import json
import stat
from datetime import datetime, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from freehold.cli import cmd_keys
from freehold.cli.main import main
from freehold.server.operation.key_file import BUDGET_PERIODS, read_keys
from freehold.server.operation.principal import SCOPES


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the keys go."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "keys.json"


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments])


def test_shown_words_are_the_servers() -> None:
    assert (cmd_keys.SHOWN_SCOPES, cmd_keys.SHOWN_PERIODS) == (SCOPES, BUDGET_PERIODS)


def test_a_key_is_shown_once_and_not_kept(file: Path) -> None:
    done = keys("add", "laptop")
    assert done.exit_code == 0, done.output
    key = done.stdout.strip()
    assert key.startswith("fh-")
    secret = key.split("-", 2)[2]
    assert len(secret) == 43  # 256 bits in base64
    assert secret not in file.read_text()
    assert secret not in keys("list", "--json").output
    assert keys("add", "desk").stdout.strip() != key


def test_the_file_is_its_owners_alone(file: Path) -> None:
    keys("add", "laptop")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir() if path.suffix not in (".json", ".lock")] == []


def test_limits_are_kept(file: Path) -> None:
    limits = "--requests-per-minute 5 --tokens-per-minute 1000 --budget-tokens 9 --budget-period month --priority 3"
    assert keys("add", "a", *limits.split(), "--scopes", "metrics,admin", "--expires", "2099-01-31").exit_code == 0
    (record,) = read_keys(file)
    assert (record.requests_per_minute, record.tokens_per_minute, record.priority) == (5, 1000, 3)
    assert (record.budget_tokens, record.budget_period) == (9, "month")
    assert record.scopes == ("metrics", "admin")
    assert record.expiry == datetime(2099, 1, 31, tzinfo=timezone.utc)
    (listed,) = json.loads(keys("list", "--json").output)["keys"]
    assert (listed["name"], listed["state"], listed["budget_tokens"]) == ("a", "active", 9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["two words"], "two words"),
        (["a", "--scopes", "everything"], "everything"),
        (["a", "--scopes", ""], "scope"),
        (["a", "--requests-per-minute", "0"], "requests_per_minute is 0"),
        (["a", "--expires", "yesterday"], "yesterday"),
        (["a", "--expires", "2001-01-01"], "has passed"),
    ],
)
def test_what_no_key_can_have(file: Path, arguments: list[str], said: str) -> None:
    done = keys("add", *arguments)
    assert (done.exit_code, said in done.stderr) == (1, True), done.output
    assert not file.exists()


def test_a_name_is_used_once_until_it_is_revoked(file: Path) -> None:
    keys("add", "a")
    assert "freehold keys revoke a" in keys("add", "a").stderr
    assert keys("revoke", "a").exit_code == 0
    assert keys("list").stdout == ""
    assert "revoked" in keys("list", "--all").stdout
    assert "no key 'a' to revoke" in keys("revoke", "a").stderr
    assert keys("add", "a").exit_code == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be used"),
        ('{"version": 2, "keys": []}', "version is 2"),
        ('{"version": 1, "keys": [{"name": "a"}]}', "hexadecimal"),
        ('{"version": 1, "keys": [], "more": 1}', "'version' and 'keys'"),
    ],
)
def test_a_file_that_is_not_understood_is_refused_and_kept(file: Path, text: str, said: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    file.chmod(0o600)
    done = keys("add", "a")
    assert (done.exit_code, said in done.stderr) == (1, True), done.output
    assert file.read_text() == text


def test_an_unknown_limit_is_no_limit_and_so_refused(file: Path) -> None:
    keys("add", "a")
    file.write_text(file.read_text().replace("tokens_per_minute", "tokens_per_moment"))
    assert "tokens_per_moment" in keys("list").stderr


def test_a_file_that_others_may_read_is_refused(file: Path) -> None:
    keys("add", "a")
    file.chmod(0o640)
    assert f"chmod 600 {file}" in keys("list").stderr
