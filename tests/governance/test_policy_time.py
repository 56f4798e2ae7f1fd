"""Looking through a text takes a time that grows with its length alone, whatever stands in it."""

from __future__ import annotations

import time

import pytest

from freehold.core.errors import ConfigError
from freehold.governance.policy.classes import DataClass
from freehold.governance.policy.classify import _OWN, Classifier
from freehold.governance.policy.detect_words import find_source_code
from freehold.governance.policy.markers import Marker
from freehold.governance.policy.settings import read_settings

HOSTILE = [
    "with x y\n",
    "if a\n",
    "SELECT ",
    "public a",
    "x(" + ") " * 50,
    "a" * 50 + "(",
    "x = " + " " * 60,
    "return\t",
    "}\n \n",
    "a." * 40,
    "ab://",
    "eyJaaaaaaaaaaaa.",
    "aws secret ",
    "-----BEGIN A ",
    "1 ",
    "4,",
    "DE89 ",
    "a@a.",
    "\\u0034",
    "%34",
    "&#5",
    "\x1b[",
    "\x1b]",
    "4" * 19 + " ",
    "0:AA",
    "A1b" * 7 + "\n",
    "x/",
    "x.",
    "y z.p ",
]
GLOBS = ("x*y*z.py", "x/**/y/**/z.py", "*x*x*x*x*y", "**/x/*/x*/**/y")


def seconds(find: object, text: str) -> float:
    start = time.thread_time()
    list(find(text))  # type: ignore[operator]
    return time.thread_time() - start


def is_quick(find: object, text: str, limit: float = 0.25) -> bool:
    """Whether it takes less than `limit` seconds. On a slow machine, or beside other work: less than four times as
    many, and half of the text so much less that the time cannot grow with the square of the length. The least of some
    alternating tries: what else runs only adds to a time."""
    whole, half = [], []
    for _ in range(10):
        whole.append(seconds(find, text))
        if min(whole) < limit:
            return True
        half.append(seconds(find, text[len(text) // 2 :]))
        if len(whole) >= 3 and min(whole) < 4 * limit and min(whole) < 3 * min(half):
            return True
    return False


def test_a_time_that_grows_with_the_square_is_no_quick_one() -> None:
    def find(text: str) -> list[int]:
        return [sum(range(len(text))) for _ in range(len(text))]

    text = "x" * 500
    while seconds(find, text) < 0.02:
        text += text
    assert not is_quick(find, text, limit=0.01)
    assert is_quick(lambda text: [sum(range(1000)) for _ in text], text * 4, limit=1.0)


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_text_takes_long(piece: str) -> None:
    """64 kB, which is what is looked at without a pause, in each detector."""
    text = (piece * (65_536 // len(piece) + 1))[:65_536]
    marker = Marker("m", DataClass.SECRET, ("Nightjar",), GLOBS, GLOBS).detector()
    for detector in (*_OWN, marker):
        assert is_quick(detector.find, text), detector.name


@pytest.mark.parametrize("text", ["xy" * 30_000, "x*y" * 20_000, ".x" * 30_000, "/x/y" * 15_000, "x" * 65_000])
@pytest.mark.parametrize("glob", GLOBS)
def test_no_glob_takes_long(glob: str, text: str) -> None:
    find = Marker("m", DataClass.SECRET, (), (glob,)).detector().find
    assert is_quick(find, text + "z.p")


def test_lines_that_are_no_code_take_no_long_time() -> None:
    assert is_quick(find_source_code, "with x y\n" * 7000, limit=0.1)


@pytest.mark.parametrize(
    ("glob", "text", "fits"),
    [
        ("a/**/b/c*d", "x a/b/cd", True),
        ("a/**/b/c*d", "a/1/2/b/c12d", True),
        ("a/**/b/c*d", "a/b/c/d", False),
        ("x*y*z.py", "x1y2z3z.py", True),
        ("x*y*z.py", "x1z2y.py", False),
        ("x*y*z.py", "x1y2z.pyc", False),
        ("*.tfstate", "PROD.TFSTATE,", True),
        ("billing/**", "see billing/./a.py", True),
        ("billing/**", "billing/", False),
        ("**/x?z", "(q/xyz)", True),
        ("**/x?z", "q/xz", False),
        ("b/*/k.toml", "b/k.toml", False),
    ],
)
def test_globs_find_what_they_found(glob: str, text: str, fits: bool) -> None:
    assert bool(list(Marker("m", DataClass.SECRET, (), (glob,)).detector().find(text))) is fits


def test_a_port_is_no_part_of_a_repository() -> None:
    find = Marker("m", DataClass.SECRET, (), (), ("github.com/acme/core-*",)).detector().find
    assert list(find("https://github.com:443/acme/core-x")) != []


def test_two_stars_inside_of_a_part_are_refused() -> None:
    with pytest.raises(ConfigError, match="stands for whole parts"):
        Marker("m", DataClass.SECRET, (), ("a**b",))


def test_the_whole_of_a_hostile_request_is_read_in_time() -> None:
    settings = read_settings('[classes]\nbase = "public"\nemail = "regulated"\nphone = "regulated"')
    found = Classifier(settings).classify({"input": "with x y\n" * 20_000})
    assert dict(found.findings) == {}
