"""The real server over a small M3, for clients: they come to a loopback URL and find what a script says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from support.client_side import Served, serving_script
from support.small_m3 import write_small_m3

Serving = Callable[..., AbstractContextManager[Served]]


@pytest.fixture(scope="session")
def small_m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that all servers serve."""
    return write_small_m3(tmp_path_factory.mktemp("clients"))


@pytest.fixture
def serving(small_m3: Path, tmp_path: Path) -> Serving:
    """`with serving(talks) as served:` runs a server of its own; options are those of `freehold serve`."""
    numbers = itertools.count()
    return lambda script, *options, **more: serving_script(
        script, small_m3, tmp_path / f"server-{next(numbers)}", *options, **more
    )


@pytest.fixture(scope="session")
def served(
    request: pytest.FixtureRequest, small_m3: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One server for all modules whose sessions need none of their own; it follows the `SCRIPT` of each."""
    here = Path(__file__).parent
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and item.path.parent == here]
    modules = {item.module.__name__: item.module for item in items}
    script = [talk for name in sorted(modules) for talk in getattr(modules[name], "SCRIPT", ())]
    with serving_script(script, small_m3, tmp_path_factory.mktemp("server")) as served:
        yield served


@pytest.fixture(scope="session")
def found_everything() -> Callable[[int, int], bool]:
    """Whether a prompt of which `cached` tokens were found found all that a request and its answer, `total` tokens, had
    computed before: all but the last one, which was sampled and never read."""
    return lambda total, cached: cached >= total - 1


@pytest.fixture(scope="module", autouse=True)
def no_proxies() -> Iterator[None]:
    """Clients in this process find no proxy in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(name, raising=False)
        yield
