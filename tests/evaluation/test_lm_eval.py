"""lm-evaluation-harness over HTTP gives the figures that it gives with transformers in its own process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch

import freehold
from support.lm_eval_tasks import Verdict, evaluate, write_tasks
from support.portable_random import portable_tokens
from support.running import running_server
from support.tiny_llama import LLAMAS, write_tiny_llama
from support.tiny_m3 import quiet_transformers

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own, and its libraries'

MOST_TOKENS = 64
"""What the harness believes the context to be, so that the longest text takes several windows."""
TOLERANCE, DEEP_TOLERANCE = 1e-5, 1e-4
"""Of sums of log-probabilities, relative: both sides compute in float32, the default model through thirty layers."""
SPARE_TOKENS = 2
"""The harness takes one token less of an API than it says the model has, and one less again for a window's context."""
WAYS: dict[str, dict[str, Any]] = {
    "token ids": {"tokenized_requests": True},
    "texts": {"tokenized_requests": False},
    "batches": {"tokenized_requests": True, "batch_size": 4},
    "batches of texts": {"tokenized_requests": False, "batch_size": 4},
    "side by side": {"tokenized_requests": True, "num_concurrent": 4},
    "the server's tokenizer": {"tokenizer_backend": "remote", "tokenizer": None},
}
WORDS = "the other one in there reins on a thin heron. Another inner theorem; it has 12 errors: naïve, αβγ!".split()


def words(count: int, seed: int) -> str:
    return " ".join(WORDS[int(token) % len(WORDS)] for token in portable_tokens(count, seed=seed, name="words"))


def next_words(llm: freehold.LLM) -> list[dict[str, str]]:
    """Texts with a next character: of half of them the likeliest, of the others another."""
    found: dict[bool, list[dict[str, str]]] = {True: [], False: []}
    for seed in range(400):
        text = words(5, seed)
        ids = llm.encode(text)
        best = int(llm.logits(ids)[-1].argmax())
        character = llm.tokenizer.token_bytes(best).decode(errors="replace")
        if llm.encode(text + character) == [*ids, best]:
            found[True].append({"text": text, "next": character})
        elif llm.encode(text + "!") == [*ids, *llm.encode("!")]:
            found[False].append({"text": text, "next": "!"})
        if min(map(len, found.values())) >= 4:
            return found[True][:4] + found[False][:4]
    raise AssertionError("no greedy next characters: take another model")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny_llama(LLAMAS["plain"], directory)
    return directory


@pytest.fixture(scope="module")
def tasks(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks")
    with freehold.LLM(checkpoint) as llm:
        scored = next_words(llm)
    questions = ["", *(words(length, length) for length in (1, 7, 30))]  # none, and one that is cut on the left
    choices = [words(length, 100 + length) for length in (1, 2, 5)]
    write_tasks(
        directory,
        {
            "choice": [{"question": q, "choices": choices, "answer": i % 3} for i, q in enumerate(questions)],
            "next_word": scored,
            "rolling": [{"page": words(length, 200 + length)} for length in (1, 12, 60)],
            "generate": [{"question": words(length, 300 + length), "answer": "x"} for length in (1, 4, 8)],
        },
    )
    return directory


@pytest.fixture(scope="module")
def by_transformers(checkpoint: Path, tasks: Path) -> Verdict:
    with quiet_transformers():
        return evaluate(tasks, "hf", pretrained=str(checkpoint), dtype="float32", max_length=MOST_TOKENS)


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with running_server(str(checkpoint), log=log) as running:
        yield running.base_url


def by_server(base_url: str, checkpoint: Path, tasks: Path, **way: Any) -> Verdict:
    options = {"tokenizer": str(checkpoint), "tokenizer_backend": "huggingface", **way}
    url = f"{base_url}/completions"
    length = MOST_TOKENS + SPARE_TOKENS
    options.setdefault("model", checkpoint.name)
    return evaluate(tasks, "local-completions", base_url=url, max_length=length, **options)


def assert_same(found: Verdict, wanted: Verdict, tolerance: float = TOLERANCE) -> None:
    for line, other_line in zip(table(found), table(wanted), strict=True):
        # A perplexity has more digits than float32 computes through many layers; all else is the same to the last.
        assert line == other_line or (tolerance > TOLERANCE and _near_perplexities(line, other_line, tolerance))
    for task, answers in wanted.answers.items():
        for got, known in zip(found.answers[task], answers, strict=True):
            for one, other in zip(got, known, strict=True):
                if isinstance(other, tuple):  # a log-likelihood, and whether it is of the greedy answer
                    assert one == (pytest.approx(other[0], rel=tolerance), other[1]), task
                else:
                    assert one == (other if isinstance(other, str) else pytest.approx(other, rel=tolerance)), task


def _near_perplexities(line: str, other: str, tolerance: float) -> bool:
    (name, value), (other_name, other_value) = (itemgetter(5, 7)(row.split("|")) for row in (line, other))
    same_metric = name == other_name and "perplexity" in name
    return same_metric and float(value) == pytest.approx(float(other_value), rel=tolerance)


def table(verdict: Verdict) -> list[str]:
    """The lines of figures; those above them name the model."""
    return [line for line in verdict.table.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("way", WAYS)
def test_figures_are_those_of_transformers(
    server: str, checkpoint: Path, tasks: Path, by_transformers: Verdict, way: str
) -> None:
    assert_same(by_server(server, checkpoint, tasks, **WAYS[way]), by_transformers)


# --- the default model --------------------------------------------------------------------------------------

PAGE = """The lighthouse at the end of the harbour was built in 1874, after three ships had been lost on the rocks in
one winter. For almost a century its keeper climbed the 142 steps twice a day, at dusk to light the lamp and at dawn to
put it out. Then electricity came, and after it a switch that needed no keeper at all. Today the tower is a museum. In
summer, visitors stand in a line that reaches down to the pier; in winter it belongs to the gulls."""
SMOLLM2_DOCUMENTS: dict[str, list[dict[str, Any]]] = {
    "choice": [
        {"question": f"Question: {question}\nAnswer:", "choices": choices, "answer": answer}
        for question, choices, answer in (
            ("What is the capital of France?", ["Paris", "London", "Rome", "Madrid"], 0),
            ("Which of these is a mammal?", ["a salmon", "an eagle", "a whale", "a lizard"], 2),
            ("At what temperature does water freeze?", ["0 degrees Celsius", "50 degrees Celsius", "100 degrees"], 0),
            ("What do bees make?", ["milk", "honey", "paper", "silk"], 1),
            ("Which planet is closest to the sun?", ["Mars", "Venus", "Jupiter", "Mercury"], 3),
            ("How many days are there in a week?", ["five", "six", "seven", "eight"], 2),
        )
    ],
    "next_word": [
        {"text": text, "next": word}
        for text, word in (
            ("The sun rises in the", " east"),
            ("Two plus two is equal to", " four"),
            ("He opened the door and walked into the", " room"),
            ("Once upon a", " time"),
            ("The opposite of hot is", " purple"),
            ("naïve, café, 東", "京"),
        )
    ],
    "page": [{"page": PAGE}, {"page": PAGE[:100]}, {"page": "x"}],
    "generate": [
        {"question": f"Question: {question}\nAnswer:", "answer": answer}
        for question, answer in (("What colour is the sky?", "Blue"), ("Who wrote Hamlet?", "Shakespeare"))
    ],
}


@pytest.fixture(scope="module")
def smollm2(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model's weights in fp32, as transformers reads and keeps them, with Freehold's tokenizer: that which
    transformers makes of a GGUF file does not cut digits off."""
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("smollm2")
    with quiet_transformers():
        read: Any = AutoModelForCausalLM.from_pretrained(
            default_model.parent, gguf_file=default_model.name, dtype=torch.float32
        )
        config = read.config
        del config.quantization_config  # a model that was read from GGUF is not saved; one with its weights is
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(directory)
    with freehold.LLM(default_model) as llm:
        tokenizer = llm.tokenizer
    tokenizer._with_special.save(str(directory / "tokenizer.json"))
    special = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special, "clean_up_tokenization_spaces": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.slow
@pytest.mark.model
def test_the_default_model_s_figures_are_those_of_transformers(
    default_model: Path, smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = tmp_path / "tasks"
    write_tasks(tasks, SMOLLM2_DOCUMENTS)
    with quiet_transformers():
        wanted = evaluate(tasks, "hf", pretrained=str(smollm2), dtype="float32", max_length=MOST_TOKENS)
    with running_server(str(default_model), log=tmp_path / "serve.log") as running:
        for way in ("token ids", "texts", "the server's tokenizer"):
            found = by_server(running.base_url, smollm2, tasks, **{"model": default_model.stem, **WAYS[way]})
            assert_same(found, wanted, DEEP_TOLERANCE)
    with capsys.disabled():
        print(f"\n{wanted.table}")
