"""`freehold bench model`: prefill, decoding, memory and loading of one model file, beside a rival."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from freehold.bench.floors import Floors, measure_floors
from freehold.bench.harness import Comparison, Samples, alternate, check_rounds, round_figures
from freehold.bench.machine import Machine, this_machine
from freehold.bench.random_directory import write_random_directory
from freehold.bench.random_gguf import NAME, write_random_gguf
from freehold.bench.report import Report
from freehold.bench.rival import (
    DenseSettings,
    Obstacle,
    Settings,
    Trial,
    candidates,
    candidates_of_transformers,
    fastest,
    obstacle,
    try_candidates,
)
from freehold.bench.traffic import file_nbytes_read
from freehold.bench.workers import Worker
from freehold.core.errors import ArgumentError
from freehold.loading.checkpoint import open_checkpoint
from freehold.loading.pull import DEFAULT_MODEL, pull, resolve

DEFAULT_PROMPTS = (512, 2048, 7900)
QUICK_PROMPTS = (128,)
KV_NBYTES = {"float32": 4, "bfloat16": 2}
_RIVAL_KV_NBYTES = 2  # float16
_SETTLE_SECONDS = 0.1  # the other process's threads stop spinning long before

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """prompt_tokens None: the suite's own lengths, as far as they fit into the model's context.

    index: the branch by which our side chooses blocks, as in `EngineConfig`; beside other rivals than "dense" there is
    none, as these read everything.
    """

    model: str | None
    prompt_tokens: tuple[int, ...] | None
    new_tokens: int
    rounds: int
    threads: int
    kv_dtype: str
    activations: str
    rival: str
    index: str
    quick: bool

    def __post_init__(self) -> None:
        if self.new_tokens < 2:
            raise ArgumentError(f"new_tokens is {self.new_tokens}; a speed of decoding needs at least 2")
        if self.index != "auto" and self.rival != "dense":
            raise ArgumentError(
                f"index is {self.index}, rival {self.rival}; blocks are chosen beside --rival dense alone"
            )


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt length. Rates in tokens a second; `theirs` of a figure is missing where no rival ran.

    floor_ours, floor_theirs: tokens a second if decoding did nothing but read weights and cache once.
    """

    prompt_tokens: int
    prefill: dict[str, Samples]
    decode: dict[str, Samples]
    first_token_seconds: dict[str, Samples]
    peak_nbytes: dict[str, int]
    floor: dict[str, float]
    same_leading_tokens: list[int]

    def as_json(self) -> dict[str, Any]:
        """Figures by name; each holds "ours" and, if a rival ran, "theirs" and the ratios."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "prefill_tokens_per_second": _figure_json(self.prefill),
            "decode_tokens_per_second": _figure_json(self.decode),
            "time_to_first_token_seconds": _figure_json(self.first_token_seconds),
            "decode_floor_tokens_per_second": self.floor,
            "peak_memory_bytes": self.peak_nbytes,
            "same_leading_tokens": self.same_leading_tokens,
        }


def run(settings: ModelSettings, say: Say) -> Report:
    """Runs the suite. say: gets a line for each stage. Raises FreeholdError of the kind that fits."""
    machine = this_machine()
    with ExitStack() as stack:
        path = _path_of(settings, say, stack)
        with open_checkpoint(path) as checkpoint:
            missing = obstacle(settings.rival, checkpoint, settings.index)
            architecture = str(checkpoint.config.get("general.architecture"))
            their_weights = file_nbytes_read(checkpoint) if checkpoint.format == "gguf" else None
        if missing is not None and settings.rival != "none":
            say(missing.reason)
        say("measuring what the machine allows")
        floors = measure_floors(settings.threads, quick=settings.quick)
        bench = _Bench(settings, path, missing, say, floors, their_weights)
        return bench.measure(stack, machine, architecture)


def _path_of(settings: ModelSettings, say: Say, stack: ExitStack) -> Path:
    model = settings.model
    if model == NAME:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="freehold-bench-")))
        if settings.rival == "transformers":
            write_random_directory(directory / NAME)
            return directory / NAME
        write_random_gguf(directory / f"{NAME}.gguf")
        return directory / f"{NAME}.gguf"
    if model is not None and model != DEFAULT_MODEL:
        return resolve(model)

    shown: set[str] = set()

    def progress(what: str, done: int, total: int | None) -> None:
        if what not in shown:
            shown.add(what)
            say(f"{what} {DEFAULT_MODEL}")

    return pull(DEFAULT_MODEL, progress=progress)


class _Bench:
    """One run of the suite: the steps share its settings and its two workers."""

    def __init__(
        self,
        settings: ModelSettings,
        path: Path,
        missing: Obstacle | None,
        say: Say,
        floors: Floors,
        their_weights: int | None,
    ) -> None:
        self.settings, self.path, self.missing, self.say, self.floors = settings, path, missing, say, floors
        self.their_weights = their_weights
        self.workers: dict[str, Worker] = {}
        self.loaded: dict[str, dict[str, Any]] = {}
        self.idle_nbytes: dict[str, int] = {}
        self.trials: list[Trial] = []
        self.running: Settings | None = None

    def measure(self, stack: ExitStack, machine: Machine, architecture: str) -> Report:
        """All steps in order; the workers end with the stack."""
        facts = self._look(stack)
        lengths = _lengths(self.settings, facts["context_length"])
        prompts = Prompts(facts["vocab_size"], facts["special_ids"])
        context = max(lengths) + self.settings.new_tokens
        if self.missing is None:
            rival = self.settings.rival
            tried = self._candidates(architecture, max(lengths))
            self.say(f"trying {len(tried)} settings of {rival}")
            trial_prompts = [prompts.make(min(lengths), -3), *(prompts.make(length, -2) for length in lengths)]
            self.trials = try_candidates(
                rival, tried, self._their_base(context), trial_prompts, self.settings.new_tokens
            )
        loads = self._load(stack, context, lengths[0])
        rows = []
        for length in lengths:
            self._change_rival(stack, context, length)
            rows.append(self._row(length, prompts))
        return self._report(machine, loads, rows)

    def _candidates(self, architecture: str, longest_prompt: int) -> Sequence[Settings]:
        if self.settings.rival == "dense":
            return [DenseSettings(self.settings.kv_dtype, self.settings.activations)]
        if self.settings.rival == "transformers":
            return candidates_of_transformers(longest_prompt)
        return candidates(architecture, longest_prompt)

    def _look(self, stack: ExitStack) -> dict[str, Any]:
        """What the model is, from a worker that ends at once: the lengths depend on it."""
        self.say(f"loading {self.path.name}")
        with Worker("freehold") as worker:
            return worker.call("load", **self._our_load(context=1))

    def _our_load(self, context: int) -> dict[str, Any]:
        s = self.settings
        rounded = {"kv_dtype": s.kv_dtype, "activations": s.activations}
        index = s.index if s.rival == "dense" else "none"
        return {"path": str(self.path), "context": context, "threads": s.threads, "index": index, **rounded}

    def _their_base(self, context: int) -> dict[str, Any]:
        return {"path": str(self.path), "context": context, "threads": self.settings.threads}

    def _change_rival(self, stack: ExitStack, context: int, length: int) -> None:
        """Another process of the rival, if it is fastest with other settings at this length than it runs with."""
        rival = self.settings.rival
        if not self.trials or (chosen := fastest(self.trials, length)) == self.running:
            return
        self.workers[rival].close()
        self.workers[rival] = worker = stack.enter_context(Worker(rival))
        self.loaded[rival] = worker.call("load", **self._their_base(context), **asdict(chosen))
        self.running = chosen

    def _load(self, stack: ExitStack, context: int, length: int) -> dict[str, Samples]:
        """Load times, each in a new process; the processes of the last round stay."""
        loads = {"freehold": self._our_load(context)}
        if self.trials:
            self.running = fastest(self.trials, length)
            loads[self.settings.rival] = {**self._their_base(context), **asdict(self.running)}
        rounds = self.settings.rounds

        def turn(side: str) -> Callable[[int], float]:
            def load(number: int) -> float:
                worker = stack.enter_context(Worker(side))
                self.idle_nbytes[side] = worker.call("memory")["resident_nbytes"]
                self.loaded[side] = worker.call("load", **loads[side])
                if number == rounds - 1:
                    self.workers[side] = worker
                else:
                    worker.close()
                return float(self.loaded[side]["load_seconds"])

            return load

        self.say(f"loading {rounds} times")
        turns = {side: turn(side) for side in loads}
        # Both sides have loaded the file before: ours to look at it, theirs for the trials. That was the warm-up.
        results = alternate(turns, rounds=rounds, warmup=0, settle=_SETTLE_SECONDS)
        return {_label(side): Samples(tuple(seconds)) for side, seconds in results.items()}

    def _row(self, length: int, prompts: Prompts) -> Row:
        new = self.settings.new_tokens
        self.say(f"prompt of {length} tokens, then {new} more, {self.settings.rounds} rounds")

        def turn(worker: Worker) -> Callable[[int], dict[str, Any]]:
            return lambda number: worker.call("answer", prompt=prompts.make(length, number), new_tokens=new)

        turns = {side: turn(worker) for side, worker in self.workers.items()}
        answers = alternate(turns, rounds=self.settings.rounds, settle=_SETTLE_SECONDS)
        elements = self.workers["freehold"].call("cache_elements", depth=length)["elements"]
        ours = self.loaded["freehold"]["weight_nbytes_read"] + elements * KV_NBYTES[self.settings.kv_dtype]
        nbytes = {"ours": ours}
        if self.settings.rival == "llama.cpp" and self.their_weights is not None:
            nbytes["theirs"] = self.their_weights + elements * _RIVAL_KV_NBYTES
        first, decode = _times(answers, "first_token_seconds"), _times(answers, "decode_seconds")
        return Row(
            prompt_tokens=length,
            prefill={side: times.map(lambda t: length / t) for side, times in first.items()},
            decode={side: times.map(lambda t: (new - 1) / t) for side, times in decode.items()},
            first_token_seconds=first,
            peak_nbytes={_label(s): w.call("memory")["peak_nbytes"] for s, w in self.workers.items()},
            floor={s: self.floors.read.per_second / n for s, n in nbytes.items()},
            same_leading_tokens=_same_leading_tokens(answers, self.settings.rival),
        )

    def _report(self, machine: Machine, loads: dict[str, Samples], rows: Sequence[Row]) -> Report:
        s = self.settings
        descriptions = {_label(side): facts["description"] for side, facts in self.loaded.items()}
        data = {
            "machine": machine.as_json(),
            "floors": self.floors.as_json(),
            "settings": {**asdict(s), "model": self.path.name},
            "rival": {
                "name": s.rival,
                "ran": self.missing is None,
                "reason": None if self.missing is None else self.missing.reason,
                "trials": [trial.as_json() for trial in self.trials],
            },
            "sides": descriptions,
            "load_seconds": _figure_json(loads),
            "idle_memory_bytes": {_label(side): nbytes for side, nbytes in self.idle_nbytes.items()},
            "weight_bytes": self.loaded["freehold"]["weight_nbytes"],
            "rows": [row.as_json() for row in rows],
        }
        rival = self.missing.cell if self.missing is not None else None
        return Report(
            suite="model",
            title=f"{self.path.name}, {s.threads} threads, {s.new_tokens} new tokens, medians of {s.rounds} rounds",
            head=(*machine.lines(), self.floors.line()),
            columns=_columns("llama.cpp" if s.rival == "none" else s.rival),
            rows=[_cells(row, rival) for row in rows],
            notes=(*self._notes(loads, descriptions), *check_rounds(s.rounds), *machine.warnings()),
            data=data,
        )

    def _notes(self, loads: dict[str, Samples], descriptions: dict[str, str]) -> list[str]:
        times = ", ".join(f"{side} {round_figures(samples.median)} s" for side, samples in loads.items())
        idle = ", ".join(f"{_label(s)} {_mebibytes(n)}" for s, n in self.idle_nbytes.items())
        notes = [f"{side}: {text}" for side, text in descriptions.items()]
        if self.missing is not None:
            notes.append(self.missing.reason)
        if len(self.trials) > 1:
            for length in self.trials[0].seconds:
                tried = "; ".join(
                    f"{trial.settings}: {round_figures(trial.seconds[length])} s" for trial in self.trials
                )
                notes.append(
                    f"{length} tokens, settings of {self.settings.rival} tried once each, fastest taken: {tried}"
                )
        return [
            *notes,
            f"load (file in the page cache): {times}; median of {self.settings.rounds}",
            f"peak memory (MiB) is the largest resident set of a process that does only this, up to and with the row; "
            f"before loading: {idle}",
            "floor: tokens a second if each new token cost only one read of our weights, and of K and V at the "
            "prompt's depth, at the measured bandwidth",
            "prompts are random tokens, new in every round, the same for both sides; greedy, end-of-sequence ignored; "
            "prefill counts the time to the first token",
        ]


def _label(side: str) -> str:
    return "ours" if side == "freehold" else "theirs"


def _columns(rival: str) -> tuple[str, ...]:
    return (
        *("prompt", "prefill tok/s", rival, "ratio"),
        *("decode tok/s", rival, "ratio", "floor"),
        *("peak MiB", rival),
    )


class Prompts:
    """Random prompts without special tokens; another one for each length and round, the same in every run.

    No two begin with the same token, as long as there are that many: nothing of one is cached for the next.
    """

    def __init__(self, vocab_size: int, special_ids: Sequence[int]) -> None:
        special = set(special_ids)
        self._ids = [token for token in range(vocab_size) if token not in special]
        self._made: dict[tuple[int, int], list[int]] = {}

    def make(self, length: int, number: int) -> list[int]:
        """`length` token ids for the round of that number; the same ones when asked again, for the other side."""
        if (length, number) not in self._made:
            prompt = random.Random(f"{length} {number}").choices(self._ids, k=length)
            prompt[0] = self._ids[len(self._made) % len(self._ids)]
            self._made[length, number] = prompt
        return self._made[length, number]


def _lengths(settings: ModelSettings, context_length: int) -> tuple[int, ...]:
    """The prompt lengths, ascending. Raises ArgumentError if one that was asked for does not fit, or none does."""
    room = context_length - settings.new_tokens
    asked = settings.prompt_tokens
    wanted = sorted(set(asked or (QUICK_PROMPTS if settings.quick else DEFAULT_PROMPTS)))
    fitting = [length for length in wanted if length <= room]
    if not fitting or (asked and len(fitting) < len(wanted)):
        raise ArgumentError(
            f"--prompt-tokens {','.join(map(str, wanted))} with --new-tokens {settings.new_tokens}: the model's "
            f"context is {context_length} tokens, so prompts of at most {room} fit"
        )
    return tuple(fitting)


def _times(answers: dict[str, list[dict[str, Any]]], key: str) -> dict[str, Samples]:
    return {_label(side): Samples(tuple(a[key] for a in given)) for side, given in answers.items()}


def _same_leading_tokens(answers: dict[str, list[dict[str, Any]]], rival: str) -> list[int]:
    """For each round, how many tokens both sides gave before the first difference; empty without a rival."""
    if rival not in answers:
        return []
    counts = []
    for ours, theirs in zip(answers["freehold"], answers[rival], strict=True):
        pairs = list(zip(ours["token_ids"], theirs["token_ids"], strict=True))
        counts.append(next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs)))
    return counts


def _figure_json(figure: dict[str, Samples]) -> dict[str, Any]:
    if "theirs" in figure:
        return Comparison(figure["ours"], figure["theirs"]).as_json()
    return {"ours": figure["ours"].as_json(), "theirs": None}


def _cells(row: Row, missing: str | None) -> list[str]:
    """missing: what stands for the rival's figures, if it did not run."""

    def figure(samples: dict[str, Samples]) -> list[str]:
        ours = round_figures(samples["ours"].median)
        if missing is not None:
            return [ours, missing, "-"]
        ratio = Comparison(samples["ours"], samples["theirs"]).ratio
        return [ours, round_figures(samples["theirs"].median), f"{ratio:.2f}"]

    peak = [_mebibytes(row.peak_nbytes["ours"])]
    peak.append(missing if missing is not None else _mebibytes(row.peak_nbytes["theirs"]))
    floor = round_figures(row.floor["ours"])
    return [str(row.prompt_tokens), *figure(row.prefill), *figure(row.decode), floor, *peak]


def _mebibytes(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f}"
