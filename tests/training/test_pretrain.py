"""Training goes on where it was killed, is shared by processes, and balances experts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from freehold.cli.main import main
from freehold.core.errors import ArgumentError, CorruptFileError
from freehold.training import pretrain
from freehold.training.corpus import Document
from freehold.training.looking import NO_SOURCE
from freehold.training.m3_forward import NO_TARGET, Batch, M3Forward
from freehold.training.pretrain import PretrainSettings, Trainer, write_model
from freehold.training.retrieval_rows import RetrievalRows, RetrievalWords
from freehold.training.rows import TextRows, batch_of
from freehold.training.shapes import RETRIEVAL, RETRIEVAL_WORDS
from freehold.training.whole_file import load_state, save_state
from support.proofs import PROVE

CONFIG = replace(RETRIEVAL, hidden_size=32, num_q_heads=2, num_kv_heads=1, num_index_heads=1, topk=3)
SETTINGS = PretrainSettings(steps=9, rows=2, dense_steps=3, warmup_steps=2, save_every=4)


def rows(seed: int = 0) -> RetrievalRows:
    return RetrievalRows(RETRIEVAL_WORDS, 96, seed=seed)


class KilledError(Exception):
    pass


def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = Trainer(CONFIG, rows(), SETTINGS, tmp_path / "whole")
    whole.run()

    def stop_at(step: int) -> None:
        def look(done: object) -> None:
            if done.step == step:  # type: ignore[attr-defined]
                raise KilledError

        with pytest.raises(KilledError):
            Trainer(CONFIG, rows(), SETTINGS, tmp_path / "again").run(look)

    stop_at(3)
    stop_at(7)
    again = Trainer(CONFIG, rows(), SETTINGS, tmp_path / "again")
    assert again.step == 4
    again.run()
    for name, weight in whole.weights.items():
        assert torch.equal(weight, again.weights[name]), name
    logs = [(tmp_path / run / "losses.jsonl").read_text() for run in ("whole", "again")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()] == list(range(1, 10))


EXPERT = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
BROKEN = {
    "no number of steps": ("steps", lambda t: t.float(), "number of steps is missing"),
    "more steps than there are": ("steps", lambda t: t + 1, "is none of 9"),
    "a weight with more steps": (f"step.{EXPERT}", lambda t: t + 1, "is not the 9 of all"),
    "a weight with fewer steps": (f"step.{EXPERT}", lambda t: t - 1, "is not the 9 of all"),
    "a weight's step that is no number": (f"step.{EXPERT}", lambda t: t * torch.nan, "is not the 9 of all"),
    "a negative square": (f"exp_avg_sq.{EXPERT}", lambda t: t - 1.0, "has a negative square"),
    "another shape": (f"exp_avg.{EXPERT}", lambda t: t[1:], "of another shape or type"),
    "a weight that is no number": (f"weight.{EXPERT}", lambda t: t * torch.inf, "has values that are no numbers"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_state_that_no_training_wrote_is_refused(tmp_path: Path, what: str) -> None:
    Trainer(CONFIG, rows(), SETTINGS, tmp_path).run()
    state = tmp_path / "state.safetensors"
    name, broken, said = BROKEN[what]
    kept = load_state(state)
    save_state({**kept, name: broken(kept[name])}, state)
    with pytest.raises(CorruptFileError, match=rf"state.safetensors: is damaged \(.*{said}"):
        Trainer(CONFIG, rows(), SETTINGS, tmp_path)


def test_where_to_look_is_learnt_if_it_has_a_weight(tmp_path: Path) -> None:
    found = []
    for weight in (0.0, 1.0):
        told: list[float] = []
        settings = replace(SETTINGS, steps=2, looking_weight=weight)
        trainer = Trainer(CONFIG, rows(), settings, tmp_path / str(weight))
        trainer.run(lambda done, told=told: told.append(done.looking))  # type: ignore[misc]
        found.append((told, trainer.weights["model.layers.1.self_attn.q_proj.weight"]))
    assert found[0][0] == [0.0, 0.0]
    assert min(found[1][0]) > 1.0
    assert not torch.equal(found[0][1], found[1][1])


def test_another_run_is_not_continued(tmp_path: Path, monkeypatch) -> None:
    Trainer(CONFIG, rows(), SETTINGS, tmp_path)
    for other in (rows(1), RetrievalRows(RETRIEVAL_WORDS, 97, seed=0)):
        with pytest.raises(ArgumentError, match="holds another training"):
            Trainer(CONFIG, other, SETTINGS, tmp_path)
    with pytest.raises(ArgumentError, match="holds another training"):
        Trainer(CONFIG, rows(), replace(SETTINGS, learning_rate=1e-3), tmp_path)
    for name, value in (("is_initialized", True), ("get_rank", 0), ("get_world_size", 2)):
        monkeypatch.setattr(pretrain.dist, name, lambda value=value: value)
    with pytest.raises(ArgumentError, match="holds another training"):
        Trainer(CONFIG, rows(), SETTINGS, tmp_path)


def test_an_expert_that_gets_too_much_is_chosen_less(tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, rows(), replace(SETTINGS, steps=40, balance_rate=0.05, learning_rate=1e-9), tmp_path)
    bias = trainer.weights["model.layers.1.block_sparse_moe.e_score_correction_bias"]
    with torch.no_grad():
        bias[3] = 1.0  # everyone's choice
    found: list[float] = []
    trainer.run(lambda done: found.append(done.imbalance))
    assert found[0] == pytest.approx(4.0, rel=1e-6)  # one of two places of 8 experts
    assert sum(found[-5:]) / 5 < 3.0
    assert bias[3] < 0.8


def test_answers_are_the_values_of_the_facts() -> None:
    words = RetrievalWords(10, 50, 6, 7)
    source = RetrievalRows(words, 300, seed=4)
    lengths: set[int] = set()
    facts: set[int] = set()
    for number in (*range(5), *range(6000, 6060)):
        row = source.row(number)
        assert row.sources is not None
        assert len(row.token_ids) == len(row.targets) == row.sources.shape[1] == 300
        assert torch.equal(source.row(number).token_ids, row.token_ids)
        for begin, end in pairwise([*row.starts, 300]):
            ids, targets = row.token_ids[begin:end].tolist(), row.targets[begin:end].tolist()
            first, last = row.sources[:, begin:end].tolist()
            said = {ids[i + 1]: begin + i + 2 for i, token in enumerate(ids) if token == words.first}
            asked = [i + 1 for i, token in enumerate(ids) if token == words.first + 1]
            assert len(asked) == len(ids) // 8
            for i, target in enumerate(targets):
                where = begin + i
                if i in asked:
                    found = said[ids[i]]
                    assert (target, first[i], last[i]) == (int(row.token_ids[found]), NO_SOURCE, found)
                elif where in said.values():
                    assert (target, first[i], last[i]) == (ids[i - 1], where - 1, NO_SOURCE)
                else:
                    assert (target, first[i], last[i]) == (NO_TARGET, NO_SOURCE, NO_SOURCE)
            assert not {words.value_id(v) for v in range(6)} & set(ids[asked[0] - 1 :])  # no answer can be read
            lengths.add(len(ids))
            facts.add(len(said))
    assert lengths == {37, 38, 75, 150, 300}
    assert (min(facts), max(facts) > 40, max(facts) <= 50) == (2, True, True)
    assert {len(source.row(number).starts) for number in range(5)} == {8}  # the shortest come first
    assert not torch.equal(source.row(0).token_ids, source.row(1).token_ids)
    assert len(words.spelt()) == words.count == 65


def test_a_batch_looks_where_its_rows_do() -> None:
    source = RetrievalRows(RETRIEVAL_WORDS, 96, seed=4)
    given = [source.row(n) for n in range(3)]
    both = batch_of(given)
    assert both.sources is not None
    for number, row in enumerate(given):
        assert row.sources is not None
        for layer, place in (row.sources != NO_SOURCE).nonzero().tolist():
            found = int(both.sources[layer, number * 96 + place])
            assert int(both.token_ids[found]) == int(row.targets[place])
    assert int((both.sources[1] != NO_SOURCE).sum()) == 3 * 3 * 4
    assert batch_of([replace(row, sources=None) for row in given]).sources is None


def test_text_rows_keep_documents_apart() -> None:
    texts = [Document(f"d{i}", "prose", chr(97 + i) * (5 + i)) for i in range(6)]
    source = TextRows(texts, lambda text: [ord(c) for c in text], 0, 12, seed=1)
    seen: Counter[int] = Counter()
    for number in range(60):
        row = source.row(number)
        edges = [*row.starts, 12]
        seen[len(edges)] += 1
        for begin, end in pairwise(edges):
            inside = [t for t in row.token_ids[begin:end].tolist() if t]
            assert len(set(inside)) <= 1
            ends = (row.token_ids[begin:end] == 0).nonzero().flatten().tolist()
            assert ends in ([], [end - begin - 1])
        for i, token in enumerate(row.token_ids.tolist()):
            target = int(row.targets[i])
            assert (target == NO_TARGET) if token == 0 else (target in (token, 0))
    assert len(seen) > 1
    with pytest.raises(ArgumentError, match="a row has 5000"):
        TextRows(texts, lambda text: [ord(c) for c in text], 0, 5000, seed=1)
    edited = [replace(texts[0], text=texts[0].text[::-1].swapcase()), *texts[1:]]
    names = {TextRows(some, lambda text: [ord(c) for c in text], 0, 12, seed=1).name for some in (texts, texts, edited)}
    assert len(names) == 2  # as many tokens, and other rows
    both = batch_of([source.row(1), source.row(2)])
    assert both.documents[0][0] == 0
    assert both.documents[-1][1] == 24
    assert (0, 12) not in both.documents or len(both.documents) > 1


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    for name, value, text in (
        ("steps", 0, "at least 1"),
        ("learning_rate", 0.0, "positive"),
        ("clip", float("nan"), "positive"),
        ("dense_steps", -1, "number from 0 on"),
        ("looking_weight", -1.0, "number from 0 on"),
        ("exit_weight", float("inf"), "number from 0 on"),
    ):
        with pytest.raises(ArgumentError, match=f"{name} is .*{text}"):
            replace(SETTINGS, **{name: value})
    for length in (31, 774):
        with pytest.raises(ArgumentError, match=f"row_tokens is {length}; rows for 128 names have 32 to 773 tokens"):
            RetrievalRows(RETRIEVAL_WORDS, length, seed=0)
    for length in (32, 773):
        RetrievalRows(RETRIEVAL_WORDS, length, seed=0).row(0)


OPTIONS = ["--retrieval", "--row-tokens", "96", "--rows", "2", "--dense-steps", "3"]


def test_the_command_makes_a_model_that_answers(tmp_path: Path) -> None:
    out = tmp_path / "model"
    done = CliRunner().invoke(main, ["train", str(out), *OPTIONS, "--steps", "4", "--save-every", "2", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 4
    settings = json.loads((out / "card.json").read_text())["settings"]
    assert (settings["exit_weight"], settings["looking_weight"]) == (0.5, 1.0)
    again = CliRunner().invoke(
        main,
        ["generate", "--model", str(out), "--prompt", "<set><name-3><value-7> and <get><name-3>", "--max-tokens", "2"],
    )
    assert again.exit_code == 0, again.output
    small = CliRunner().invoke(main, ["train", str(out), *OPTIONS, "--steps", "5"])
    assert small.exit_code == 1
    assert "holds another training" in small.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "nothing"], "it must be small, retrieval, or a file"),
        (["--retrieval", "--config", "small"], "the model has 257 tokens; --retrieval needs"),
        (["--retrieval", "--text", "."], "exclude each other"),
        (["--retrieval", "--tokenizer", "x"], "--tokenizer is for texts"),
        (["--tokenizer", "nowhere"], "no model 'nowhere': it is neither a path nor the name of a pulled model"),
        (["--retrieval", "--row-tokens", "1000"], "row_tokens is 1000"),
        (["--learning-rate", "-1"], "learning_rate is -1.0"),
    ],
)
def test_what_the_command_refuses(tmp_path: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["train", str(tmp_path / "out"), *options])
    assert done.exit_code == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_makes_a_model_that_looks_names_up(tmp_path: Path) -> None:
    """Texts of 32 tokens alone, a few minutes; longer ones and longer training are in docs/log."""
    out = tmp_path / "model"
    options = ["--retrieval", "--row-tokens", "32", "--rows", "64", "--steps", "400", "--json"]
    done = CliRunner().invoke(main, ["train", str(out), *options])
    assert done.exit_code == 0, done.output
    weights = load_file(out / "model.safetensors")
    given = batch_of([RetrievalRows(RETRIEVAL_WORDS, 32, seed=1).row(n) for n in range(100)])
    assert given.sources is not None
    asked = given.sources[1] != NO_SOURCE
    said = M3Forward(RETRIEVAL).logits(weights, given, sparse=True).argmax(dim=1)
    assert float((said == given.targets)[asked].double().mean()) > 0.9


COMMAND = [sys.executable, "-c", "from freehold.cli.main import main; main()", "train"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_bits_of_a_run_never_killed(tmp_path: Path) -> None:
    steps = 500 if PROVE else 60
    arguments = [*OPTIONS, "--steps", str(steps), "--save-every", "7"]
    subprocess.run([*COMMAND, str(tmp_path / "whole"), *arguments], check=True, capture_output=True, env=environment())
    killed = 0
    for at in (steps // 4, steps * 3 // 5):
        running = subprocess.Popen(
            [*COMMAND, str(tmp_path / "again"), *arguments],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(),
        )  # fmt: skip
        log = tmp_path / "again.work" / "losses.jsonl"
        while running.poll() is None and not (log.exists() and log.read_text().count("\n") >= at):
            time.sleep(0.01)
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
            killed += 1
        running.wait()
    assert killed == 2
    subprocess.run([*COMMAND, str(tmp_path / "again"), *arguments], check=True, capture_output=True, env=environment())
    whole, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again"))
    assert whole == again
    logs = [(tmp_path / f"{name}.work" / "losses.jsonl").read_text() for name in ("whole", "again")]
    assert logs[0] == logs[1]
    assert logs[0].count("\n") == steps


def test_a_token_counts_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(CONFIG, rows(), SETTINGS, tmp_path)
    each = [rows().row(n) for n in (0, 1)]
    assert len({int((row.targets != NO_TARGET).sum()) for row in each}) == 2
    batches = [batch_of([row]) for row in each]
    counts: list[torch.Tensor] = []
    monkeypatch.setattr("freehold.training.pretrain.dist.all_reduce", lambda count: counts.append(count.clone()))
    trainer.world = 2
    for batch in batches:
        trainer._shares(batch)
    monkeypatch.setattr("freehold.training.pretrain.dist.all_reduce", lambda count: count.copy_(sum(counts)))

    def looked(batch: Batch) -> list[float]:
        found = trainer.forward.losses(trainer.weights, batch, sparse=False, exits=True, looking=True)
        return [float(x.detach()) for x in (found.language, found.exits, found.looking, found.index)]

    parts = [looked(replace(batch, shares=trainer._shares(batch))) for batch in batches]
    assert [sum(both) / 2 for both in zip(*parts, strict=True)] == pytest.approx(looked(batch_of(each)), rel=1e-5)
    nothing = replace(batches[0], targets=torch.full_like(batches[0].targets, NO_TARGET))
    assert looked(nothing)[:2] == [0.0, 0.0]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    arguments = [*OPTIONS, "--steps", "6"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    subprocess.run([*COMMAND, str(tmp_path / "one"), *arguments], check=True, capture_output=True, env=environment())
    two = subprocess.run(
        [*torchrun, *COMMAND, str(tmp_path / "two"), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert two.returncode == 0, two.stderr[-3000:]
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == other.keys()
    worst = max(float((one[name] - other[name]).abs().max()) for name in one)
    assert worst < 2e-3, worst  # the same mean gradient, summed in another order, through six steps of Adam
    losses = [
        [json.loads(line)["language"] for line in (tmp_path / f"{name}.work" / "losses.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_is_written_is_whole(tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, rows(), replace(SETTINGS, steps=1), tmp_path / "work")
    trainer.run()
    write_model(trainer, tmp_path / "model", {"texts": "made up"})
    assert json.loads((tmp_path / "model" / "card.json").read_text()) == {"texts": "made up"}
    assert not list((tmp_path / "model").glob("*.new"))
