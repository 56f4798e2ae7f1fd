"""`freehold serve` whose model says what a script says: the real server, engine and cache, with one thing replaced.

    python -m support.scripted_serve SCRIPT JOURNAL serve MODEL [OPTIONS]

Every token is computed, cached and counted as ever; only which one is taken was decided before. JOURNAL gets a line of
JSON for every request that ends: what was asked and answered, and the engine's own counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.core.events import FinishEvent
from freehold.engine.engine import Engine
from freehold.engine.request import Request
from freehold.engine.sampler import Sampler
from freehold.model.m3_tokens import THINK_CLOSE, THINK_OPEN
from support.running import RunningServer, running_server
from support.scripted_answers import ScriptedTalk, read_script, scripted_answer, spelled, uneven_tokens, write_script

_SHOWN = 300  # characters of a prompt's end in the journal


class ScriptedSampler(Sampler):
    """Takes the tokens of one answer, whatever the logits say. Raises AssertionError for one that a grammar forbids."""

    def __init__(self, answer: Sequence[int], params: Any) -> None:
        super().__init__(params)
        self._answer = answer

    def sample(
        self,
        logits: NDArray[np.float32],
        tokens: Sequence[int],
        prompt_len: int,
        allowed: NDArray[np.int64] | None = None,
    ) -> int:
        """See Sampler."""
        token = self._answer[len(tokens) - prompt_len]
        assert allowed is None or token in allowed, f"the grammar forbids token {token} of the script"
        return token


class Director:
    """Steers an engine by a script, and keeps the journal."""

    def __init__(self, script: Sequence[ScriptedTalk], journal: Path) -> None:
        self._script, self._journal = script, journal
        self._seen: dict[str, dict[str, Any]] = {}

    def install(self) -> None:
        """Every engine of this process follows the script from now on."""
        submit, finish = Engine.submit, Engine._finish

        def scripted_submit(engine: Engine, *arguments: Any, **options: Any) -> str:
            request_id = submit(engine, *arguments, **options)
            self._direct(engine, engine._requests[request_id])
            return request_id

        def told_finish(engine: Engine, request: Request, *arguments: Any, **options: Any) -> FinishEvent:
            event = finish(engine, request, *arguments, **options)
            self._write(request, event)
            return event

        Engine.submit = scripted_submit  # type: ignore[method-assign]
        Engine._finish = told_finish  # type: ignore[method-assign]

    def _direct(self, engine: Engine, request: Request) -> None:
        prompt = engine.tokenizer.decode(request.tokens[: request.prompt_len], skip_special=False)
        marker, turn, answer = scripted_answer(self._script, prompt)
        opened = next((tag for tag in (THINK_OPEN, THINK_CLOSE) if prompt.endswith(tag)), "")
        text = spelled(answer, opened=opened, strict=request.params.grammar is not None)
        request.sampler = ScriptedSampler(list(uneven_tokens(text, engine.tokenizer)), request.params)
        self._seen[request.request_id] = {"marker": marker, "turn": turn, "end": prompt[-_SHOWN:]}

    def _write(self, request: Request, event: FinishEvent) -> None:
        seen = self._seen.pop(request.request_id)
        told = {**seen, "reason": event.reason, "error": event.error, **asdict(event.usage)}
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(told) + "\n")


@contextmanager
def scripted_server(
    script: Sequence[ScriptedTalk], model: Path, folder: Path, *options: str
) -> Iterator[tuple[RunningServer, Path]]:
    """A running server and its journal. folder: for its files; options: of `freehold serve`."""
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / "journal.jsonl"
    written = write_script(script, folder / "script.json")
    command = [sys.executable, "-m", "support.scripted_serve", str(written), str(journal)]
    # One thread: with several, a small model waits for itself on a busy machine.
    given = (str(model), "--threads", "1", *options)
    home = {"FREEHOLD_HOME": str(folder / "home"), "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with running_server(*given, log=folder / "server.log", command=command, environment=home) as server:
        yield server, journal


def read_journal(journal: Path) -> list[dict[str, Any]]:
    """The requests that ended so far."""
    return [json.loads(line) for line in journal.read_text("utf-8").splitlines()] if journal.exists() else []


def main() -> None:
    """Runs the command line under a script."""
    from freehold.cli.main import main as freehold

    Director(read_script(Path(sys.argv[1])), Path(sys.argv[2])).install()
    freehold(sys.argv[3:])


if __name__ == "__main__":
    main()
