"""`freehold bench`: the command group and its options. A suite is imported when it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class Sizes(click.ParamType[tuple[int, ...]]):
    """`512,2048,7900`: numbers of at least 1."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Split and convert; a usage error if something is no such number."""
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} is not a list of numbers from 1, for example 512,2048", param, ctx)
        return sizes


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of both sides; left out: all cores this process may use."
)
rounds_option = click.option(
    "--rounds", type=click.IntRange(min=1), help="Measured rounds after the warm-up; 5, with --quick 2."
)
quick_option = click.option("--quick", is_flag=True, help="Small and few: whether it works, not how fast it is.")
json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout; the table goes to stderr."
)
markdown_option = click.option("--markdown", is_flag=True, help="The table in Markdown.")


@click.group()
def command() -> None:
    """Measure Freehold beside its rivals.

    Both sides alternate in one run; figures are medians, and the limits of the machine are measured with them.
    """


@command.command()
@click.argument("model", required=False)
@click.option(
    "--prompt-tokens", type=Sizes(), help="Prompt lengths; 512,2048,7900 as far as they fit, with --quick 128."
)
@click.option(
    "--new-tokens", type=click.IntRange(min=2), help="Tokens generated after each prompt; 64, with --quick 8."
)
@click.option(
    "--rival",
    type=click.Choice(["llama.cpp", "transformers", "dense", "none"]),
    default="llama.cpp",
    show_default=True,
    help="What runs beside us: llama.cpp on a .gguf file, transformers on a directory; dense: ourselves, reading every "
    "block, where our side reads those that it chooses.",
)
@click.option("--index", default="auto", show_default=True, help="By which branch, beside --rival dense.")
@click.option(
    "--kv-dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="bfloat16",
    show_default=True,
    help="How our side stores K and V; llama.cpp's are float16.",
)
@click.option(
    "--activations",
    type=click.Choice(["float32", "int8"]),
    default="int8",
    show_default=True,
    help="What our side multiplies codes of weights with; llama.cpp rounds to 8 bits.",
)
@threads_option
@rounds_option
@quick_option
@json_option
@markdown_option
def model(
    model: str | None,
    prompt_tokens: tuple[int, ...] | None,
    new_tokens: int | None,
    rival: str,
    index: str,
    kv_dtype: str,
    activations: str,
    threads: int | None,
    rounds: int | None,
    quick: bool,
    as_json: bool,
    markdown: bool,
) -> None:
    """Prefill, decoding, memory and loading of one model, beside llama.cpp or transformers.

    MODEL is a pulled name, a directory, a .gguf file or `m3-bench`, a small MiniMax-M3 with random weights of 16 bits;
    without it, the default model, fetched if it is missing.
    """
    from freehold.bench.report import show
    from freehold.bench.suite_model import ModelSettings, run

    settings = ModelSettings(
        model=model,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens or (8 if quick else 64),
        rounds=rounds or (2 if quick else 5),
        threads=threads or _cores(),
        kv_dtype=kv_dtype,
        activations=activations,
        rival=rival,
        index=index,
        quick=quick,
    )
    show(run(settings, _say), as_json=as_json, markdown=markdown)


@command.command()
@threads_option
@rounds_option
@quick_option
@json_option
@markdown_option
def kernels(threads: int | None, rounds: int | None, quick: bool, as_json: bool, markdown: bool) -> None:
    """Each native kernel beside torch's operator and the limits of the machine, with one thread and with all."""
    from freehold.bench.report import show
    from freehold.bench.suite_kernels import KernelSettings, run

    counts = tuple(sorted({1, threads or _cores()}))
    settings = KernelSettings(threads=counts, rounds=rounds or (2 if quick else 5), quick=quick)
    show(run(settings, _say), as_json=as_json, markdown=markdown)


@command.command()
@click.option("--contexts", type=Sizes(), help="Tokens; 1 K to 1 M, with --quick 1 K to 8 K.")
@click.option(
    "--keys",
    type=click.Choice(["structured", "random"]),
    default="structured",
    show_default=True,
    help="Index keys that resemble trained ones, or independent ones.",
)
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Also draw the ratios into this PNG file."
)
@threads_option
@rounds_option
@quick_option
@json_option
@markdown_option
def attention(
    contexts: tuple[int, ...] | None,
    keys: str,
    plot: Path | None,
    threads: int | None,
    rounds: int | None,
    quick: bool,
    as_json: bool,
    markdown: bool,
) -> None:
    """Sparse attention at MiniMax-M3's shape beside torch's dense attention and the limits of the machine.

    A million tokens need about 7 GB of memory, and some minutes for the dense side.
    """
    from freehold.bench.report import show
    from freehold.bench.suite_attention import AttentionSettings, check_contexts, run

    wanted = contexts or tuple(1024 * n for n in ((1, 8) if quick else (1, 2, 8, 32, 64, 128, 1024)))
    check_contexts(wanted)
    settings = AttentionSettings(
        contexts=wanted, keys=keys, threads=threads or _cores(), rounds=rounds or (2 if quick else 5), quick=quick
    )
    report = run(settings, _say)
    if plot is not None:
        from freehold.bench.plot import draw_ratios

        draw_ratios(report, plot)
    show(report, as_json=as_json, markdown=markdown)


@command.command()
@click.option("--tokens", type=Sizes(), help="Lengths; 2048,8192,32768, with --quick 512.")
@threads_option
@rounds_option
@quick_option
@json_option
@markdown_option
def backward(
    tokens: tuple[int, ...] | None,
    threads: int | None,
    rounds: int | None,
    quick: bool,
    as_json: bool,
    markdown: bool,
) -> None:
    """Gradients through sparse attention at MiniMax-M3's shape, beside torch's autograd under a dense mask.

    32,768 tokens need about 12 GB of memory and ten minutes, all but 4 GB and a minute for torch.
    """
    from freehold.bench.report import show
    from freehold.bench.suite_backward import BackwardSettings, run

    settings = BackwardSettings(
        tokens=tokens or ((512,) if quick else (2048, 8192, 32768)),
        threads=threads or _cores(),
        rounds=rounds or (2 if quick else 5),
    )
    show(run(settings, _say), as_json=as_json, markdown=markdown)


@command.command()
@click.option(
    "--shape",
    type=click.Choice(["published", "calls", "forks"]),
    default="calls",
    show_default=True,
    help="Coding agents with the published averages; one session of tool calls; sub-agents that begin alike.",
)
@click.option("--calls", type=click.IntRange(min=1), help="Calls of each session; 84, 1959 or 8, with --quick fewer.")
@click.option("--sessions", type=click.IntRange(min=1), help="Sessions of published, at the same time; 3.")
@click.option(
    "--scale", type=click.FloatRange(min=0, min_open=True), help="All lengths of published times this; 1/64 (0.015625)."
)
@click.option("--prefix", type=click.IntRange(min=1), help="Tokens that the sessions of forks have in common; 32768.")
@click.option(
    "--store-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the block store, which is kept; left out: a temporary one. Blocks that an earlier run left are "
    "not computed again.",
)
@click.option("--no-store", is_flag=True, help="Blocks in memory only.")
@click.option(
    "--ram-budget", type=click.IntRange(min=1), help="Bytes of RAM for K and V of sparse layers; left out: no limit."
)
@click.option(
    "--kv-dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="How K, V and index keys are stored.",
)
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Also draw the latency of each call into this PNG."
)
@click.option("--threads", type=click.IntRange(min=1), help="Left out: all cores this process may use.")
@quick_option
@json_option
@markdown_option
def sessions(
    store_dir: Path | None,
    no_store: bool,
    plot: Path | None,
    threads: int | None,
    as_json: bool,
    markdown: bool,
    **options: Any,
) -> None:
    """Agent sessions through the engine, over a small random model: whether anything is computed twice, and whether
    calls become slower as the history grows.
    """
    from freehold.bench.report import show
    from freehold.bench.suite_sessions import SessionSettings, run

    settings = SessionSettings(
        store=not no_store,
        store_dir=None if store_dir is None else str(store_dir),
        threads=threads or _cores(),
        **options,
    )
    report = run(settings, _say)
    if plot is not None:
        from freehold.bench.plot_sessions import draw_latencies

        draw_latencies(report, plot)
    show(report, as_json=as_json, markdown=markdown)


@command.command()
@click.argument("model", required=False)
@click.option("--streams", type=click.IntRange(min=1), default=8, show_default=True, help="Answers at the same time.")
@click.option("--prompt", type=click.IntRange(min=1), default=512, show_default=True, help="Prompt tokens of each.")
@click.option("--answer", type=click.IntRange(min=16), help="Tokens of each answer; 128, with --quick 24.")
@click.option("--long-prompt", type=click.IntRange(min=1), help="Tokens of the prompt beside them; 32768 or 2048.")
@threads_option
@rounds_option
@quick_option
@json_option
@markdown_option
def streams(
    model: str | None,
    streams: int,
    prompt: int,
    answer: int | None,
    long_prompt: int | None,
    threads: int | None,
    rounds: int | None,
    quick: bool,
    as_json: bool,
    markdown: bool,
) -> None:
    """Several answers at once beside one, and the gaps between their tokens while a long prompt is read.

    MODEL is a pulled name, a directory or a .gguf file; without it, a small random MiniMax-M3.
    """
    from freehold.bench.report import show
    from freehold.bench.suite_streams import StreamSettings, run

    settings = StreamSettings(
        model=model,
        streams=streams,
        prompt=prompt,
        answer=answer or (24 if quick else 128),
        long_prompt=long_prompt or (2048 if quick else 32768),
        threads=threads or _cores(),
        rounds=rounds or (2 if quick else 5),
    )
    show(run(settings, _say), as_json=as_json, markdown=markdown)


@command.command()
@click.option("--context", type=click.IntRange(min=1), help="Tokens of the session; 150000, with --quick 4096.")
@click.option("--ram-budget", type=click.IntRange(min=1), help="Bytes of RAM for K and V of sparse layers.")
@click.option("--threads", type=click.IntRange(min=1), help="Left out: all cores this process may use.")
@quick_option
@json_option
@markdown_option
def restart(
    context: int | None, ram_budget: int | None, threads: int | None, quick: bool, as_json: bool, markdown: bool
) -> None:
    """How soon a session on the disk answers after a restart, beside reading it again. A small random model."""
    from freehold.bench.report import show
    from freehold.bench.suite_restart import RestartSettings, run

    settings = RestartSettings(
        context=context or (4096 if quick else 150_000), threads=threads or _cores(), ram_budget=ram_budget
    )
    show(run(settings, _say), as_json=as_json, markdown=markdown)


@command.command(name="slice")
@click.option(
    "--directory",
    type=click.Path(file_okay=False),
    help="Where the checkpoint is written and kept; 10 GB. Left out: removed.",
)
@click.option("--prompt", type=click.IntRange(min=1), help="Tokens of the prompt; 2048, with --quick 256.")
@click.option("--new-tokens", type=click.IntRange(min=2), help="Tokens of the answer; 32, with --quick 4.")
@click.option(
    "--expert-budget", type=click.IntRange(min=1), help="Bytes of RAM for experts; 2000000000, with --quick 200000."
)
@click.option("--threads", type=click.IntRange(min=1), help="Left out: all cores this process may use.")
@quick_option
@json_option
@markdown_option
def slice_(
    directory: str | None,
    prompt: int | None,
    new_tokens: int | None,
    expert_budget: int | None,
    threads: int | None,
    quick: bool,
    as_json: bool,
    markdown: bool,
) -> None:
    """Three layers of MiniMax-M3 in its true sizes, all in RAM and with experts from the disk. Random weights."""
    from freehold.bench.report import show
    from freehold.bench.suite_slice import SliceSettings, run

    settings = SliceSettings(
        directory=directory,
        prompt=prompt or (256 if quick else 2048),
        new_tokens=new_tokens or (4 if quick else 32),
        expert_budget=expert_budget or (200_000 if quick else 2_000_000_000),
        threads=threads or _cores(),
        small=quick,
    )
    show(run(settings, _say), as_json=as_json, markdown=markdown)


@command.command()
@click.option("--contexts", type=Sizes(), help="Tokens, ascending; 65536,262144,1048576, with --quick 20480,24576.")
@click.option(
    "--ram-budget", type=click.IntRange(min=1), help="Bytes of RAM for K and V; 512 MiB, with --quick 16 MiB."
)
@click.option(
    "--store-dir", type=click.Path(file_okay=False, path_type=Path), help="Directory of the block store, which is kept."
)
@click.option("--threads", type=click.IntRange(min=1), help="Left out: all cores this process may use.")
@quick_option
@json_option
@markdown_option
def long(
    contexts: tuple[int, ...] | None,
    ram_budget: int | None,
    store_dir: Path | None,
    threads: int | None,
    quick: bool,
    as_json: bool,
    markdown: bool,
) -> None:
    """A session of up to a million tokens, its K and V on the disk: pace, decoding and memory. A small random model;
    about an hour, and about 8 GB of memory for the comparison at the end."""
    from freehold.bench.report import show
    from freehold.bench.suite_long import LongSettings, run

    settings = LongSettings(
        contexts=contexts or ((20480, 24576) if quick else (65536, 262144, 1048576)),
        ram_budget=ram_budget or (32 if quick else 512) * 2**20,
        threads=threads or _cores(),
        store_dir=None if store_dir is None else str(store_dir),
    )
    show(run(settings, _say), as_json=as_json, markdown=markdown)


def _say(line: str) -> None:
    click.echo(line, err=True)
