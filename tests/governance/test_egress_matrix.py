"""The matrix: every route that gets out without the lock is blocked by the seal, as root and as nobody."""

from __future__ import annotations

import os

import pytest

from freehold.governance.egress import matrix as matrix_module
from freehold.governance.egress.inside import CONNECTED
from freehold.governance.egress.matrix import Cell, Matrix, Row, run_matrix, users_here
from freehold.governance.egress.routes import ROUTES
from support.sealing import need_a_seal

USERS = ["root", "nobody"] if os.geteuid() == 0 else ["this user"]

# What must get out without a lock wherever these tests run. The rest depends on the kernel and on rights.
SURE = (
    "tcp4 udp4 udp-write udp-sendmsg unix-stream unix-datagram unix-pair unix-abstract listener-unspec accepted-unspec "
    "urllib ctypes child signal file netlink groups source-groups"
).split()


@pytest.fixture(scope="module", autouse=True)
def _sealable() -> None:
    need_a_seal()


@pytest.fixture(scope="module")
def found() -> Matrix:
    return run_matrix()


def row(found: Matrix, route: str, user: str) -> Row:
    return next(row for row in found.rows if row.route == route and (row.user == user or user == "this user"))


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("route", [CONNECTED, *(route.name for route in ROUTES)])
def test_route_is_blocked(found: Matrix, route: str, user: str) -> None:
    tried = row(found, route, user)
    assert not tried.cells["sealed"].arrived
    if tried.verdict == "not provable here":
        assert route not in SURE
        pytest.skip(f"{route} as {user}: {tried.reason}")
    assert tried.cells["open"].arrived
    assert tried.verdict == "blocked"


def test_nothing_was_counted_inside(found: Matrix) -> None:
    assert found.holds
    assert len(found.packets) == len(USERS)
    assert {count for counted in found.packets.values() for count in counted.values()} == {0}


def test_attempts_were_recorded(found: Matrix) -> None:
    assert all(number > 20 for number in found.attempts.values())


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    ("layer", "route"),
    [
        ("namespace", "listener-unspec"),
        ("namespace", "unix-stream"),
        ("namespace", "signal"),
        ("namespace", "groups"),
        ("landlock", "source-groups"),
        ("landlock", "limit"),
        ("landlock", "udp4"),
        ("filter", "signal"),
        ("filter", "file"),
        ("capabilities", "tcp4"),
    ],
)
def test_no_layer_is_enough_alone(found: Matrix, layer: str, route: str, user: str) -> None:
    """So each is there for a reason, and the listener sees what a weaker lock lets through."""
    assert row(found, route, user).cells[layer].arrived


def test_a_seal_that_leaks_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_module, "LAYERS", ("landlock",))
    leaking = run_matrix(users_here()[-1:], single_layers=False)
    assert {"udp4", "udp-write", "unix-stream"} <= {row.route for row in leaking.of("escaped")}
    assert not leaking.holds


def made_up(open_arrived: bool, sealed_arrived: bool, packets: int = 0) -> Matrix:
    cells = {"open": Cell(open_arrived, None), "sealed": Cell(sealed_arrived, "no")}
    only = Row("r", "a route", "u", cells, None if open_arrived else "without the lock, too: no")
    return Matrix([only], {"u": {}}, {"u": 1}, {"u": {"lo.sent": packets}})


@pytest.mark.parametrize(
    ("found", "holds", "verdict"),
    [
        (made_up(True, False), True, "blocked"),
        (made_up(True, True), False, "escaped"),
        (made_up(False, True), False, "escaped"),
        (made_up(False, False), False, "not provable here"),
        (made_up(True, False, packets=1), False, "blocked"),
    ],
)
def test_verdicts(found: Matrix, holds: bool, verdict: str) -> None:
    assert found.holds is holds
    assert found.rows[0].verdict == verdict
