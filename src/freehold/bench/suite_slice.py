"""`freehold bench slice`: a slice of MiniMax-M3 in its true sizes, all in memory and with experts from the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from freehold.bench.floors import Floors, measure_floors
from freehold.bench.harness import round_figures
from freehold.bench.machine import this_machine
from freehold.bench.report import Report
from freehold.bench.session_shape import random_prefix
from freehold.bench.slice_checkpoint import slice_config, write_slice
from freehold.bench.workers import Worker
from freehold.core.errors import FreeholdError

Say = Callable[[str], None]

_NOTES = (
    "weights: random; experts in codes of 4 bits with a scale and an offset for 32, all other matrices of 8 bits",
    "per layer: a part of the whole step, its head over 200,064 tokens included, for each of the three layers",
    "read a token: weights, K, V and index keys, from memory; of the floor: that at the measured bandwidth, as part of "
    "the time",
    "from disk: bytes of experts for each token of the answer; hits: of the experts that a layer asked for, those that "
    "were in memory",
)


@dataclass(frozen=True, slots=True)
class SliceSettings:
    """directory: of the checkpoint, kept if it is given. expert_budget: bytes, of the second run."""

    directory: str | None
    prompt: int
    new_tokens: int
    expert_budget: int
    threads: int
    small: bool


def run(settings: SliceSettings, say: Say) -> Report:
    """Runs the suite. say: gets a line for each stage. Raises FreeholdError if the two runs answer differently."""
    machine, config = this_machine(), slice_config(settings.small)
    floors = measure_floors(settings.threads)
    with ExitStack() as stack:
        directory = settings.directory or stack.enter_context(TemporaryDirectory(prefix="freehold-slice-"))
        write_slice(Path(directory), config, say)
        runs = {}
        for name, budget in (("all in RAM", None), ("experts from disk", settings.expert_budget)):
            say(name)
            runs[name] = _measured(settings, directory, budget, config["vocab_size"])
    first, second = runs.values()
    if first["answer"]["token_ids"] != second["answer"]["token_ids"]:
        raise FreeholdError("the answers of the two runs differ")
    layers, weights = config["num_hidden_layers"], first["weight_nbytes_read"]
    return Report(
        suite="slice",
        title=(
            f"{layers} layers of MiniMax-M3, hidden {config['hidden_size']}, {config['num_local_experts']} experts; "
            f"prompt of {settings.prompt:,} tokens, {settings.threads} threads"
        ),
        head=machine.lines(),
        columns=(
            "", "loaded s", "peak GiB", "prefill tok/s", "decode ms", "per layer", "read a token", "of the floor",
            "from disk", "hits",
        ),
        rows=[_row(name, figures, weights, settings, floors, layers) for name, figures in runs.items()],
        notes=(*_NOTES, *machine.warnings()),
        data={"machine": machine.as_json(), "floors": floors.as_json(), "settings": asdict(settings), "runs": runs},
    )  # fmt: skip


def _measured(settings: SliceSettings, path: str, budget: int | None, vocabulary: int) -> dict[str, Any]:
    """Figures of one way, in a process of its own. A short prompt comes first: memory is touched, experts are there."""
    with Worker("slice") as worker:
        context = settings.prompt + settings.new_tokens + 512
        loaded = worker.call("load", path=path, expert_budget=budget, context=context, threads=settings.threads)
        worker.call("answer", prompt=random_prefix(1, vocabulary, 64), new_tokens=2)
        prompt = random_prefix(2, vocabulary, settings.prompt)
        answer = worker.call("answer", prompt=prompt, new_tokens=settings.new_tokens)
        return {**loaded, "answer": answer, **worker.call("memory")}


def _row(
    name: str, figures: dict[str, Any], weights: int, settings: SliceSettings, floors: Floors, layers: int
) -> Sequence[str]:
    """weights: bytes of them that a token reads."""
    answer, steps = figures["answer"], settings.new_tokens - 1
    seconds = answer["decode_seconds"] / steps
    read = weights + answer["cache_nbytes_read"]
    experts = answer["decode_experts"]
    asked = experts["hits"] + experts["misses"]
    streamed = figures["expert_places"] is not None
    return [
        name,
        round_figures(figures["load_seconds"]),
        f"{figures['peak_nbytes'] / 2**30:.1f}",
        round_figures(settings.prompt / answer["first_token_seconds"]),
        round_figures(seconds * 1e3),
        f"{round_figures(seconds * 1e3 / layers)} ms",
        f"{read / 1e6:,.0f} MB",
        f"{read / floors.read.per_second / seconds:.0%}",
        f"{experts['nbytes'] / steps / 1e6:,.0f} MB" if streamed else "-",
        f"{experts['hits'] / asked:.0%}" if asked else "-",
    ]
