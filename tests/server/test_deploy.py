"""What deploy/ calls, the command line knows; and it promises no less than the manual says."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess

import click
import pytest

from freehold.cli.main import main
from support.repository import ROOT

UNIT = (ROOT / "deploy" / "freehold.service").read_text("utf-8")
CONTAINER = (ROOT / "deploy" / "Containerfile").read_text("utf-8")


def unit():
    parser = configparser.RawConfigParser(strict=False, comment_prefixes=("#",), delimiters=("=",))
    parser.optionxform = str
    parser.read_string(UNIT)
    return parser


def instructions(text):
    """(name, rest) of each instruction of a Containerfile, continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def problems(words):
    """What is wrong with a call of `freehold`, as its own parser says."""
    command = main.get_command(click.Context(main), words[0])
    assert command is not None, words
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]


def container_command():
    return json.loads(dict(instructions(CONTAINER))["CMD"])


def test_the_unit_s_command_is_known():
    words = shlex.split(unit()["Service"]["ExecStart"])
    assert words[1] == "serve"
    assert problems(words[1:]) == []


def test_the_container_s_command_is_known():
    assert container_command()[0] == "serve"
    assert problems(container_command()) == []


def test_unknown_options_are_seen():
    assert problems(["serve", "--wings", "2", "--port=1"]) == ["--wings"]


def seconds_after(words, option):
    return float(words[words.index(option) + 1])


def test_the_unit_waits_longer_than_the_drain():
    words = shlex.split(unit()["Service"]["ExecStart"])
    assert float(unit()["Service"]["TimeoutStopSec"]) > seconds_after(words, "--drain-seconds") + 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DynamicUser", "yes"),
        ("ProtectSystem", "strict"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
        ("IPAddressDeny", "any"),
        ("Restart", "on-failure"),
    ],
)
def test_the_unit_is_closed(name, value):
    assert unit()["Service"][name] == value


def test_the_unit_allows_the_files_that_connections_need():
    from freehold.server.operation.options import ServerOptions
    from freehold.server.operation.port import _OTHER_FILES

    assert int(unit()["Service"]["LimitNOFILE"]) >= ServerOptions().max_connections + _OTHER_FILES


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_understands_the_unit(tmp_path):
    # The program need not be installed where the test runs; everything else is checked.
    there = tmp_path / "freehold.service"
    there.write_text(UNIT.replace("/opt/freehold/bin/freehold serve", "/bin/true serve"))
    done = subprocess.run(["systemd-analyze", "verify", str(there)], capture_output=True, text=True)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "freehold.service" in line]) == (0, [])


def test_the_image_is_small_and_without_rights():
    found = instructions(CONTAINER)
    stages = [rest for name, rest in found if name == "FROM"]
    assert len(stages) == 2
    assert stages[0].endswith("AS build")
    after = found[[name for name, _ in found].index("FROM", 1) :]
    user = next(rest for name, rest in after if name == "USER")
    assert int(user.partition(":")[0]) > 0
    assert not [rest for name, rest in after if name == "RUN" and re.search(r"apt-get|pip|g\+\+", rest)]
    assert "HF_HUB_OFFLINE=1" in next(rest for name, rest in after if name == "ENV")


def test_the_health_check_is_python_that_compiles_and_asks_for_readiness():
    check = dict(instructions(CONTAINER))["HEALTHCHECK"]
    words = json.loads(check[check.index("[") :])
    compile(words[2], "HEALTHCHECK", "exec")
    assert words[1] == "-c"
    port = container_command()[container_command().index("--port") + 1]
    assert f"http://127.0.0.1:{port}/health/ready" in words[2]
