"""Small tasks for lm-evaluation-harness, written to a directory, and its verdicts on them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

_COMMON = {"dataset_path": "json", "validation_split": "validation", "metadata": {"version": 1}}
_METRIC = {"aggregation": "mean", "higher_is_better": True}
_TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", **_METRIC}, {"metric": "acc_norm", **_METRIC}],
    },
    "next_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{next}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": "acc", **_METRIC},
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        ],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "page": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}, {"metric": "word_perplexity"}],
    },
    "generate": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False, "temperature": 0.0},
        "metric_list": [{"metric": "exact_match", **_METRIC}],
    },
}


@dataclass(frozen=True)
class Verdict:
    """What the harness found. table: as it prints it. answers: task -> what the model said for each document, in order:
    (log-likelihood, greedy) pairs, a log-likelihood, or a text."""

    table: str
    answers: Mapping[str, list[Any]]


def write_tasks(directory: Path, documents: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The tasks named in `documents`, over these documents: choice, next_word, rolling, page, generate. The figures
    of rolling are small enough for a model that knows nothing; page has perplexities too."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, lines in documents.items():
        data = directory / f"{name}.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        kept = {"data_files": {"validation": str(data)}, "cache_dir": str(directory / "cache")}
        task = {"task": f"local_{name}", **_COMMON, "dataset_kwargs": kept, **_TASKS[name]}
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def evaluate(directory: Path, model: str, /, *, tasks: Sequence[str] = (), **model_args: Any) -> Verdict:
    """The verdict on a model of the harness. tasks: names as for write_tasks; none: all that were written."""
    names = [f"local_{name}" for name in tasks] or sorted(f"local_{path.stem}" for path in directory.glob("*.yaml"))
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=names,
        task_manager=TaskManager(include_path=str(directory), include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
        log_samples=True,
    )
    assert found is not None
    answers = {
        name.removeprefix("local_"): [_answer(sample) for sample in sorted(samples, key=lambda s: s["doc_id"])]
        for name, samples in found["samples"].items()
    }
    return Verdict(make_table(found), answers)


def _answer(sample: Mapping[str, Any]) -> Any:
    return [response for (response,) in sample["resps"]]
