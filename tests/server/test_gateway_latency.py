"""What the gateway adds to a request: three processes, the same endpoint asked directly and through it, alternating."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.gateway_rig import endpoints_toml
from support.repository import ROOT

ALLOWED_MS = 3.0
ROUNDS, TURNS = 5, 100

POLICY = '@id("all") permit (principal, action, resource);'
OFF = "\n".join(
    f'{name} = "off"'
    for name in ("payment-card", "iban", "national-id", "private-key", "access-token", "url-password", "source-code")
)
DETECTORS = 'email = "regulated"\nphone = "regulated"\n[[marker]]\nname = "n"\nclass = "secret"\ntexts = ["Nightjar"]\n'
PROSE = "The quick brown fox jumps over the lazy dog, 12 times; see section 4.2 of the manual.\n"


@contextlib.contextmanager
def process(*words: str, log: Path, sign: str) -> Iterator[str]:
    """A Python process that writes to `log`; yields the address in the line that begins with `sign`."""
    paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with log.open("w") as output:
        started = subprocess.Popen([sys.executable, "-m", *words], stdout=output, stderr=output, env=variables)
    try:
        yield _address(started, log, sign)
    finally:
        started.send_signal(signal.SIGINT)
        started.wait(30)


def _address(started: subprocess.Popen[bytes], log: Path, sign: str) -> str:
    end = time.monotonic() + 60
    while time.monotonic() < end and started.poll() is None:
        for line in log.read_text().splitlines(keepends=True):
            if line.startswith(sign) and line.endswith("\n"):
                return next(word for word in line.split() if word.startswith("http")).removesuffix("/v1")
        time.sleep(0.05)
    raise AssertionError(f"it did not start:\n{log.read_text()[-2000:]}")


def added_ms(direct: str, door: str, nbytes: int) -> tuple[float, float]:
    """Medians of a request asked directly, and of what the gateway adds to it, in milliseconds: of the round that other
    work on the machine disturbed least."""
    content = (PROSE * (nbytes // len(PROSE) + 1))[:nbytes]
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    with httpx.Client(timeout=30) as client:

        def asked(url: str) -> float:
            start = time.perf_counter()
            client.post(f"{url}/v1/chat/completions", json=body).raise_for_status()
            return (time.perf_counter() - start) * 1e3

        rounds = []
        for _ in range(ROUNDS):
            pairs = [
                (asked(direct), asked(door)) if turn % 2 else (asked(door), asked(direct))[::-1]
                for turn in range(TURNS)
            ]
            base, through = (statistics.median(times) for times in zip(*pairs, strict=True))
            rounds.append((through - base, base))
    added, base = min(rounds)
    return base, added


@pytest.mark.slow
def test_the_gateway_adds_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "all.cedar").write_text(POLICY)
    (tmp_path / "off.toml").write_text(f'[classes]\nbase = "public"\n{OFF}\n')
    (tmp_path / "on.toml").write_text(f'[classes]\nbase = "public"\n{DETECTORS}')
    rows = []
    with process("support.plain_upstream", log=tmp_path / "upstream.log", sign="http") as direct:
        entry = {"name": "e", "base_url": direct, "api": "openai", "models": ["m"], "path": "self-hosted"}
        files = ["--policy", str(tmp_path / "all.cedar"), "--endpoints", str(endpoints_toml(tmp_path, entry))]
        for detectors in ("off", "on"):
            classes = ["--classes", str(tmp_path / f"{detectors}.toml"), "--no-access-log"]
            words = ["freehold.cli.main", "gateway", "--port", "0", *files, *classes]
            with process(*words, log=tmp_path / f"{detectors}.log", sign="Open on") as door:
                rows += [(detectors, nbytes, *added_ms(direct, door, nbytes)) for nbytes in (200, 8_000, 100_000)]
    with capsys.disabled():
        for detectors, nbytes, base, added in rows:
            print(
                f"\ndetectors {detectors}, {nbytes:6} bytes: direct p50 {base:.2f} ms, added p50 {added:.2f} ms", end=""
            )
    assert rows[0][3] <= ALLOWED_MS
    assert rows[1][3] <= ALLOWED_MS
