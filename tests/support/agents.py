"""Coding agents of other makers as programs: where they are installed, how they are told of a server, how they run.

Each gets a home of its own and no way out of the machine. `./scripts/prove` installs them below build/clients.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from support.client_side import Served
from support.closed_proxy import closed_proxy
from support.repository import ROOT
from support.scripted_answers import ScriptedCall, call

FOLDER = Path(os.environ.get("FREEHOLD_CLIENTS_DIR", ROOT / "build" / "clients")) / "node_modules" / ".bin"
CONTEXT = 400_000
"""What agents are told of the model's context; without it they guess."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. wanted: hosts beyond loopback that the agent tried to reach, in vain."""

    status: int
    output: str
    errors: str
    wanted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Agent:
    """One program. configure: writes its settings below a home and gives its variables and arguments before the
    request. shell, write: the calls with which it runs a command and writes a file."""

    program: str
    configure: Callable[[Served, Path], tuple[Mapping[str, str], list[str]]]
    shell: Callable[[str], ScriptedCall]
    write: Callable[[Path, str], ScriptedCall]

    @property
    def path(self) -> Path:
        """Where it is installed, or would be."""
        return FOLDER / self.program

    def why_not(self) -> str | None:
        """What keeps it from running here; None if nothing does."""
        if not self.path.exists():
            return "it is not installed; ./scripts/prove installs it"
        with tempfile.TemporaryDirectory() as home, closed_proxy() as (proxies, _):
            variables = {"PATH": os.environ["PATH"], "HOME": home, **proxies}
            command = [str(self.path), "--version"]
            done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
        return None if done.returncode == 0 else f"it does not start: {(done.stderr or done.stdout)[-300:].strip()}"

    def run(self, served: Served, request: str, *, home: Path, folder: Path, seconds: float = 500.0) -> Outcome:
        """Lets it work on a request in `folder`, to its end."""
        variables, arguments = self.configure(served, home)
        with closed_proxy() as (proxies, wanted):
            done = subprocess.run(
                [str(self.path), *arguments, request],
                cwd=folder,
                env={"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb", **proxies, **variables},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
            )
            return Outcome(done.returncode, done.stdout, done.stderr, tuple(wanted))


def _codex(served: Served, home: Path) -> tuple[Mapping[str, str], list[str]]:
    settings = f"""
model = "{served.model}"
model_provider = "freehold"
model_context_window = {CONTEXT}
check_for_update_on_startup = false

[analytics]
enabled = false

[features]
apps = false
plugins = false

[model_providers.freehold]
name = "Freehold"
base_url = "{served.openai}"
wire_api = "responses"
stream_idle_timeout_ms = 500000
request_max_retries = 0
stream_max_retries = 0
"""
    (home / ".codex").mkdir()
    (home / ".codex" / "config.toml").write_text(settings)
    return {}, ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]


def _claude(served: Served, home: Path) -> tuple[Mapping[str, str], list[str]]:
    models = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("HAIKU", "SONNET", "OPUS")))
    variables = {
        "ANTHROPIC_BASE_URL": served.url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        **dict.fromkeys(models, served.model),
        "API_TIMEOUT_MS": "500000",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(CONTEXT),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    return variables, ["--allowedTools=Bash,Write", "--print"]


def _opencode(served: Served, home: Path) -> tuple[Mapping[str, str], list[str]]:
    model = {"name": served.model, "tool_call": True, "reasoning": True, "limit": {"context": CONTEXT, "output": 8192}}
    settings = {
        "autoupdate": False,
        "share": "disabled",
        "model": f"freehold/{served.model}",
        "small_model": f"freehold/{served.model}",
        "enabled_providers": ["freehold"],
        "permission": {"*": "allow"},
        "provider": {
            "freehold": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Freehold",
                "options": {"baseURL": served.openai, "apiKey": "none", "timeout": 500000},
                "models": {served.model: model},
            }
        },
    }
    folder = home / ".config" / "opencode"
    folder.mkdir(parents=True)
    (folder / "opencode.json").write_text(json.dumps(settings))
    off = ("AUTOUPDATE", "MODELS_FETCH", "DEFAULT_PLUGINS", "LSP_DOWNLOAD")
    return {f"OPENCODE_DISABLE_{name}": "1" for name in off}, ["run"]


AGENTS = {
    "codex": Agent(
        "codex",
        _codex,
        lambda command: call("exec_command", cmd=command),
        lambda path, text: call("exec_command", cmd=f"printf '{text}' > '{path}'"),
    ),
    "claude": Agent(
        "claude",
        _claude,
        lambda command: call("Bash", command=command, description="Look around"),
        lambda path, text: call("Write", file_path=str(path), content=text),
    ),
    "opencode": Agent(
        "opencode",
        _opencode,
        lambda command: call("bash", command=command, description="Look around"),
        lambda path, text: call("write", filePath=str(path), content=text),
    ),
}
