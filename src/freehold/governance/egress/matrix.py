"""The matrix of escape routes: each route, as each user, with no lock, with each layer alone, and sealed.

A row counts as blocked only if its canary came out: the same code, without the lock, on the same machine, sent a token
that really arrived. Where none did, the row says so and why, and proves nothing.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from freehold.core.errors import GovernanceError
from freehold.governance.egress.inside import CONNECTED
from freehold.governance.egress.outside import NUM_SLOTS
from freehold.governance.egress.recorder import read_attempts
from freehold.governance.egress.routes import ROUTES
from freehold.governance.egress.seal import LAYERS, Layer

OPEN, SEALED = "open", "sealed"
SINGLE: tuple[Layer, ...] = ("namespace", "capabilities", "landlock", "filter")
_CONNECTED_WHAT = "a connection that was open before the seal"

Verdict = Literal["blocked", "escaped", "not provable here"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One attempt. arrived: at the listener outside; error: how it ended for the process that tried."""

    arrived: bool
    error: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """One route as one user. cells: by `open`, `sealed` and each single layer.

    reason: why nothing is proved, otherwise None.
    """

    route: str
    what: str
    user: str
    cells: dict[str, Cell]
    reason: str | None

    @property
    def verdict(self) -> Verdict:
        """Blocked only if the canary got out and the sealed attempt did not."""
        if self.cells[SEALED].arrived:
            return "escaped"
        return "blocked" if self.reason is None else "not provable here"


@dataclass(frozen=True, slots=True)
class Matrix:
    """All rows, and what stood around them. seals: the layers in effect, by user; attempts: recorded while sealed, by
    user; packets: counted in the sealed namespace, by user."""

    rows: list[Row]
    seals: dict[str, dict[str, str]]
    attempts: dict[str, int]
    packets: dict[str, dict[str, int]]

    def of(self, verdict: Verdict) -> list[Row]:
        """The rows with that verdict."""
        return [row for row in self.rows if row.verdict == verdict]

    @property
    def holds(self) -> bool:
        """Whether nothing escaped, something was proved, and no packet was counted inside."""
        silent = not any(count for counted in self.packets.values() for count in counted.values())
        return bool(self.of("blocked")) and not self.of("escaped") and silent


def users_here() -> list[int]:
    """Who the matrix is run as: root and nobody by root, otherwise whoever asks."""
    if os.geteuid() != 0:
        return [os.geteuid()]
    return [0, pwd.getpwnam("nobody").pw_uid]


def run_matrix(
    users: Sequence[int] | None = None,
    *,
    single_layers: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Matrix:
    """Try everything; about ten seconds. users: None: see `users_here`. single_layers: try each layer alone as well.

    Raises GovernanceError where the machine cannot be sealed as one of the users, with the reason.
    """
    users = users_here() if users is None else users
    modes: list[tuple[str, list[Layer] | None]] = [(OPEN, None), (SEALED, list(LAYERS))]
    modes += [(layer, [layer]) for layer in SINGLE] if single_layers else []
    runs = [(user, mode, layers) for user in users for mode, layers in modes]
    assert 3 * len(runs) <= NUM_SLOTS
    with tempfile.TemporaryDirectory(prefix="freehold-egress-") as made:
        base = Path(made)
        base.chmod(0o755)
        (base / "files").mkdir()
        (base / "files").chmod(0o777)
        with _Other(base, users, len(runs)) as other:
            told = {}
            for place, (user, mode, layers) in enumerate(runs):
                progress(f"{_name(user)}: {mode}")
                told[user, mode] = _try_all(other, place, user, layers, base)
            received = other.end()
        attempts = {_name(user): _num_attempts(base / f"attempts-{user}") for user in users}
    return _judged(users, [mode for mode, _ in modes], told, received, attempts)


class _Other:
    """The listening process, while it runs."""

    def __init__(self, base: Path, users: Sequence[int], num_terminals: int) -> None:
        self._process = _python("outside")
        self._say({"base": str(base), "users": list(users), "terminals": num_terminals})
        self.told = self._hear()

    def __enter__(self) -> _Other:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def end(self) -> str:
        """All that arrived."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        received = str(self._hear()["received"])
        self._process.wait(10)
        return received

    def _say(self, words: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise GovernanceError("The process that listens has died; its last words stand above.")
        found: dict[str, Any] = json.loads(line)
        return found


def _python(module: str) -> subprocess.Popen[str]:
    """A fresh interpreter, which has loaded nothing, with our package on its path."""
    package = Path(__file__).parents[3]
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", f"freehold.governance.egress.{module}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd="/",
    )


def _try_all(other: _Other, place: int, user: int, layers: list[Layer] | None, base: Path) -> dict[str, Any]:
    """One run; the answer of `inside.py`, with its tokens."""
    names = [CONNECTED, *(route.name for route in ROUTES)]
    # Letters and digits: they pass as file names, host names and paths.
    tokens = {name: f"tk{secrets.token_hex(8)}" for name in names}
    record = None
    if layers is not None and "record" in layers:
        record = base / f"attempts-{user}"
        record.touch()
        if user != os.geteuid():
            os.chown(record, user, -1)
    terminals = other.told["terminals"]
    asked = {
        "user": user,
        "layers": layers,
        "record": None if record is None else str(record),
        "terminal": terminals[place] if place < len(terminals) else None,
        "first_slot": 3 * place,
        "tokens": tokens,
        "outside": {**other.told["common"], **other.told["victims"][str(user)]},
    }
    with _python("inside") as process:
        answer, _ = process.communicate(json.dumps(asked) + "\n", timeout=300)
    if not answer:
        raise GovernanceError(f"The process that tries as {_name(user)} has died; its last words stand above.")
    told: dict[str, Any] = json.loads(answer.splitlines()[-1])
    if "refused" in told:
        raise GovernanceError(f"As {_name(user)}: {told['refused']}")
    return {**told, "tokens": tokens}


def _judged(
    users: Sequence[int], modes: list[str], told: dict[Any, Any], received: str, attempts: dict[str, int]
) -> Matrix:
    rows = []
    kinds = [(CONNECTED, _CONNECTED_WHAT, False), *((route.name, route.what, route.by_pid) for route in ROUTES)]
    for name, what, by_pid in kinds:
        for user in users:
            cells = {}
            for mode in modes:
                if name == CONNECTED and mode in SINGLE:
                    continue  # not a layer's doing
                tried = told[user, mode]["routes"][name]
                mark = f"pid{tried['pid']};" if by_pid else told[user, mode]["tokens"][name]
                cells[mode] = Cell(mark in received, tried["error"])
            rows.append(Row(name, what, _name(user), cells, reason_of(cells[OPEN])))
    return Matrix(
        rows,
        {_name(user): told[user, SEALED]["seal"]["layers"] for user in users},
        attempts,
        {_name(user): told[user, SEALED]["packets"] for user in users},
    )


def reason_of(canary: Cell) -> str | None:
    """Why nothing is proved of a route whose canary came back so; None where its token arrived."""
    if canary.arrived:
        return None
    return f"without the lock, too: {canary.error or 'nothing arrived'}"


def _num_attempts(record: Path) -> int:
    return len(read_attempts(record)) if record.exists() else 0


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
