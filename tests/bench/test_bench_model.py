"""`freehold bench model`: both sides on one file, a rival that is missing, and lengths that do not fit."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from freehold.bench import floors as floors_module
from freehold.bench import suite_model
from freehold.bench.random_directory import write_random_directory
from freehold.bench.random_m3 import BENCH_M3
from freehold.bench.rival import (
    RivalSettings,
    TransformersSettings,
    candidates,
    candidates_of_transformers,
    fastest,
    try_candidates,
)
from freehold.bench.side_freehold import FreeholdSide
from freehold.bench.suite_model import ModelSettings, Prompts
from freehold.bench.worker import SIDES, serve
from freehold.bench.workers import Worker
from freehold.cli.main import main
from freehold.core.errors import ArgumentError, FreeholdError
from freehold.core.events import FinishEvent, Usage
from freehold.loading.checkpoint import open_checkpoint
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.model.registry import load_tokenizer
from support.tiny_llama import LLAMAS, write_tiny_llama
from support.tiny_m3 import SHAPES, write_tiny_m3_gguf

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed: pip install 'freehold[rivals]'",
)
KEYS = set("suite schema machine floors settings rival sides load_seconds rows notes".split())
KEYS |= {"idle_memory_bytes", "weight_bytes"}
FIGURES = ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_seconds")


@pytest.fixture(autouse=True)
def small_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors_module, "READ_NBYTES", 8 * 2**20)
    monkeypatch.setattr(floors_module, "MATRIX_SIZE", 128)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MiniMax-M3, context 8192."""
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    write_tiny_m3_gguf(SHAPES["release_selection"], path)
    return path


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our side without a process of its own, which would spend most of a test importing torch."""
    monkeypatch.setattr(suite_model, "Worker", InProcess)


class InProcess:
    """A worker whose side lives here."""

    def __init__(self, side: str) -> None:
        assert side in ("freehold", "dense")
        self._side = FreeholdSide()

    def call(self, name: str, **arguments: Any) -> Any:
        out = io.StringIO()
        message = json.dumps({"call": name, **arguments}) + "\n"
        serve(self._side, SIDES["freehold"][2], io.StringIO(message), out)
        answer = json.loads(out.getvalue())
        if "error" in answer:
            raise FreeholdError(answer["error"])
        return answer["value"]

    def close(self) -> None:
        pass

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def bench(*arguments: str) -> Result:
    # One thread: a rival whose threads wait for each other would crawl while other tests run.
    return CliRunner().invoke(main, ["bench", "model", "--quick", "--threads", "1", *arguments])


def json_of(done: Result) -> dict[str, Any]:
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 1
    report: dict[str, Any] = json.loads(done.stdout)
    assert report.keys() == KEYS
    return report


@needs_llama_cpp
def test_both_sides_of_a_tiny_model(tiny_gguf: Path) -> None:
    done = bench(str(tiny_gguf), "--new-tokens", "4", "--json")
    report = json_of(done)
    (row,) = report["rows"]
    assert row["prompt_tokens"] == 128
    for name in FIGURES:
        figure = row[name]
        assert figure["ratio_of_medians"] == pytest.approx(figure["ours"]["median"] / figure["theirs"]["median"])
        assert len(figure["ours"]["samples"]) == len(figure["theirs"]["samples"]) == 2
        assert figure["ours"]["min"] > 0
    speed, seconds = row["prefill_tokens_per_second"], row["time_to_first_token_seconds"]
    assert speed["ours"]["samples"] == pytest.approx([128 / t for t in seconds["ours"]["samples"]])
    assert row["decode_floor_tokens_per_second"].keys() == row["peak_memory_bytes"].keys() == {"ours", "theirs"}
    for side, idle in report["idle_memory_bytes"].items():
        assert row["peak_memory_bytes"][side] > idle > 0
    assert report["rival"]["ran"] is True
    # Without flash attention llama.cpp would run this model densely, and prompts of 128 need no larger batch.
    assert [(t["batch_tokens"], t["flash_attention"]) for t in report["rival"]["trials"]] == [(512, True)]
    assert "flash attention on" in report["sides"]["theirs"]
    assert report["load_seconds"]["ours"]["min"] > 0
    assert "tiny.gguf" in done.stderr


@pytest.mark.usefixtures("one_process")
def test_without_the_rival(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llama_cpp" else find_spec(name, *rest)
    )
    done = bench(str(tiny_gguf), "--rounds", "1", "--new-tokens", "2", "--json")
    report = json_of(done)
    assert report["rival"]["ran"] is False
    assert "pip install 'freehold[rivals]'" in report["rival"]["reason"]
    (row,) = report["rows"]
    assert row["decode_tokens_per_second"]["theirs"] is None
    assert row["peak_memory_bytes"].keys() == {"ours"}
    assert done.stderr.count("not installed │") == 3
    assert done.stderr.index("pip install 'freehold[rivals]'") < done.stderr.index("measuring")


@pytest.mark.usefixtures("one_process")
def test_a_directory_is_measured_without_the_rival(tmp_path: Path) -> None:
    write_tiny_llama(LLAMAS["tied"], tmp_path / "tiny")
    # The vocabulary is larger than the tokenizer's; without their rows, tokens that have no text are never the best.
    weights = load_file(tmp_path / "tiny" / "model.safetensors")
    weights["model.embed_tokens.weight"][256:] = 0
    save_file(weights, tmp_path / "tiny" / "model.safetensors")
    done = bench(str(tmp_path / "tiny"), "--rounds", "1", "--prompt-tokens", "20,40", "--new-tokens", "2", "--markdown")
    assert done.exit_code == 0, done.output
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["| 20", "| 40"]
    assert rows[0][2] == "llama.cpp"
    if importlib.util.find_spec("llama_cpp") is not None:
        assert rows[2][2] == "not readable"
        assert "llama.cpp reads GGUF files only" in done.stderr


@pytest.mark.usefixtures("one_process")
def test_nothing_is_said_about_a_rival_that_was_not_asked_for(tiny_gguf: Path) -> None:
    done = bench(str(tiny_gguf), "--rounds", "1", "--new-tokens", "2", "--rival", "none", "--markdown")
    assert done.exit_code == 0, done.output
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("| 128 "))
    assert row.split(" | ")[2] == "-"
    assert "rivals]" not in done.output


@pytest.mark.usefixtures("one_process")
def test_chosen_blocks_stand_beside_all_of_them(tiny_gguf: Path) -> None:
    done = bench(
        str(tiny_gguf), "--rounds", "1", "--new-tokens", "3", "--rival", "dense", "--prompt-tokens", "64,300", "--json"
    )
    report = json_of(done)
    assert report["rival"]["ran"] is True
    assert "DENSE" in report["sides"]["theirs"]
    assert "DENSE" not in report["sides"]["ours"]
    short, long = report["rows"]
    assert short["same_leading_tokens"] == [3]  # so few blocks are all chosen
    assert long["decode_tokens_per_second"]["ratio_of_medians"] > 0


@pytest.mark.usefixtures("one_process")
def test_a_model_without_a_branch_is_not_measured_beside_itself(tmp_path: Path) -> None:
    write_tiny_llama(LLAMAS["tied"], tmp_path / "tiny")
    arguments = (str(tmp_path / "tiny"), "--rounds", "1", "--new-tokens", "2", "--prompt-tokens", "20")
    done = bench(*arguments, "--rival", "dense", "--json")
    assert "freehold convert" in json_of(done)["rival"]["reason"]
    done = bench(*arguments, "--rival", "none", "--index", "branch")
    assert done.exit_code != 0
    assert "index is branch, rival none" in done.output


@pytest.mark.usefixtures("one_process")
def test_lengths_beyond_the_context_are_refused(tiny_gguf: Path) -> None:
    done = bench(str(tiny_gguf), "--rival", "none", "--prompt-tokens", "16,8190")
    assert done.exit_code == 1
    assert "8192 tokens, so prompts of at most 8184 fit" in done.stderr


def settings(**changes: Any) -> ModelSettings:
    values: dict[str, Any] = {
        "model": None,
        "prompt_tokens": None,
        "new_tokens": 64,
        "rounds": 5,
        "threads": 1,
        "kv_dtype": "bfloat16",
        "activations": "int8",
        "rival": "none",
        "index": "auto",
        "quick": False,
    }
    return ModelSettings(**{**values, **changes})


def test_own_lengths_are_those_that_fit() -> None:
    lengths = suite_model._lengths
    assert lengths(settings(), 8192) == (512, 2048, 7900)
    assert lengths(settings(), 4096) == (512, 2048)
    assert lengths(settings(quick=True), 4096) == (128,)
    assert lengths(settings(prompt_tokens=(9, 5, 9)), 100) == (5, 9)
    with pytest.raises(ArgumentError, match="at most 36 fit"):
        lengths(settings(), 100)


@pytest.mark.parametrize("value", ["512,x", "", "0", "5,-1", "1.5"])
def test_lengths_that_are_no_numbers_are_wrong_usage(value: str) -> None:
    done = bench("--prompt-tokens", value)
    assert done.exit_code == 2
    assert "is not a list of numbers from 1" in done.stderr


def test_a_speed_needs_two_tokens() -> None:
    with pytest.raises(ArgumentError, match="new_tokens is 1"):
        settings(new_tokens=1)


def test_prompts_share_no_beginning_and_no_special_token() -> None:
    prompts, again = Prompts(vocab_size=34, special_ids=[0, 7]), Prompts(34, [0, 7])
    made = [prompts.make(length, number) for length in (64, 512) for number in range(-3, 13)]
    assert [len(prompt) for prompt in made] == [64] * 16 + [512] * 16
    assert made == [again.make(length, number) for length in (64, 512) for number in range(-3, 13)]
    assert len({prompt[0] for prompt in made}) == len(made)
    assert not {0, 7} & {token for prompt in made for token in prompt}
    assert prompts.make(64, 1) == made[4]  # the other side asks for it too


def test_candidates_of_the_rival() -> None:
    assert candidates("llama", 512) == [RivalSettings(512, True), RivalSettings(512, False)]
    assert candidates("llama", 600) == [RivalSettings(n, flash) for flash in (True, False) for n in (512, 2048)]
    assert candidates("minimax-m3", 600) == [RivalSettings(512, True), RivalSettings(2048, True)]


def test_the_rival_keeps_the_settings_with_which_it_is_fastest() -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Fake:
        """A rival that is fast without flash attention on short prompts, and slow on its first one."""

        seconds = 0.0

        def call(self, name: str, **arguments: Any) -> dict[str, Any]:
            calls.append((name, arguments))
            if name == "load":
                self.seconds = 2.0 if arguments["flash_attention"] else 1.0
                return {}
            first = self.seconds if len(arguments["prompt"]) > 1 else 100.0
            if len(arguments["prompt"]) > 2 and self.seconds == 1.0:
                first = 4.0
            return {"first_token_seconds": first, "decode_seconds": 0.5}

    @contextmanager
    def worker(side: str) -> Iterator[Fake]:
        assert side == "llama.cpp"
        yield Fake()

    tried = [RivalSettings(512, True), RivalSettings(512, False)]
    prompts = [[1], [1, 2], [1, 2, 3]]
    trials = try_candidates("llama.cpp", tried, {"path": "x"}, prompts, 8, worker=worker)  # type: ignore[arg-type]
    assert [(trial.settings, trial.seconds) for trial in trials] == [
        (tried[0], {2: 2.5, 3: 2.5}), (tried[1], {2: 1.5, 3: 4.5})
    ]  # fmt: skip
    assert (fastest(trials, 2), fastest(trials, 3)) == (tried[1], tried[0])
    assert [name for name, _ in calls] == ["load", "answer", "answer", "answer"] * 2
    assert calls[0][1] == {"path": "x", **asdict(tried[0])}


def test_a_cached_prompt_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cached:
        def events(self, *_: Any) -> Iterator[FinishEvent]:
            yield FinishEvent("id", "length", Usage(prompt_tokens=4, cached_tokens=3))

    side = FreeholdSide()
    side.llm = Cached()  # type: ignore[assignment]
    with pytest.raises(FreeholdError, match="3 prompt tokens were cached"):
        side.answer(prompt=[1, 2, 3, 4], new_tokens=2)


@needs_llama_cpp
@pytest.mark.model
def test_both_sides_continue_a_text_alike(default_model: Path) -> None:
    """They run the same model on the same tokens: greedy answers to a clear prompt do not differ at once."""
    with open_checkpoint(default_model) as checkpoint:
        tokenizer = load_tokenizer(checkpoint)
    prompt = tokenizer.encode("a b c d e f g h i j k l m n")
    base = {"path": str(default_model), "context": 128, "threads": 1}
    with Worker("freehold") as ours, Worker("llama.cpp") as theirs:
        ours.call("load", **base, kv_dtype="float32", activations="float32")
        theirs.call("load", **base, batch_tokens=512, flash_attention=True)
        answers = [side.call("answer", prompt=prompt, new_tokens=12)["token_ids"] for side in (ours, theirs)]
    assert answers[0] == answers[1]
    assert tokenizer.decode(answers[0]) == " o p q r s t u v w x y z"


@pytest.mark.slow
def test_a_random_model_stands_beside_transformers() -> None:
    """Both read the same directory; greedy tokens of random weights may part, their figures must be there."""
    report = json_of(bench("m3-bench", "--rival", "transformers", "--rounds", "1", "--new-tokens", "2", "--json"))
    (row,) = report["rows"]
    assert report["settings"]["rival"] == "transformers"
    assert {trial["dtype"] for trial in report["rival"]["trials"]} == {"bfloat16", "float32"}
    assert row["prefill_tokens_per_second"]["ratio_of_medians"] > 0
    assert row["peak_memory_bytes"].keys() == {"ours", "theirs"}
    assert "transformers" in report["sides"]["theirs"]


def test_transformers_reads_directories(tiny_gguf: Path) -> None:
    report = json_of(bench(str(tiny_gguf), "--rival", "transformers", "--rounds", "1", "--new-tokens", "2", "--json"))
    assert report["rival"]["ran"] is False
    assert "measured on directories of safetensors" in report["rival"]["reason"]


def test_candidates_of_transformers() -> None:
    short, long = candidates_of_transformers(2048), candidates_of_transformers(8192)
    assert [(s.dtype, s.chunk_tokens) for s in short] == [("bfloat16", 0), ("float32", 0)]
    assert long == [*short, *(TransformersSettings(s.dtype, 2048) for s in short)]


def test_the_random_directory_is_the_model_of_the_suites(tmp_path: Path) -> None:
    write_random_directory(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        config = MiniMaxM3Config.from_hf(checkpoint.config, "config.json")
    assert config == BENCH_M3
