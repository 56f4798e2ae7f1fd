"""A run of `freehold train`: from options to a model, in one process or several."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.distributed as dist

from freehold.cli.working import shown_work
from freehold.core.errors import ArgumentError
from freehold.loading.json_object import read_json_object
from freehold.loading.registry import resolve
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.model.tokenizer import Tokenizer
from freehold.training.bytes_tokenizer import END, bytes_tokenizer, write_bytes_tokenizer
from freehold.training.corpus import texts_of
from freehold.training.places import alone_in
from freehold.training.pretrain import PretrainSettings, Progress, Trainer, check_model_out, write_model
from freehold.training.retrieval_rows import RetrievalRows
from freehold.training.rows import Rows, TextRows
from freehold.training.shapes import RETRIEVAL_WORDS, SHAPES

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


class TrainingRun:
    """out: becomes the model. work: holds the state. options: as `freehold train` has them."""

    def __init__(self, out: Path, work: Path, options: Mapping[str, Any]) -> None:
        self.out, self.work, self.options = out, work, options

    def run(self) -> Progress | None:
        """Trains and writes the model; the last step, or None in a process that does not write."""
        with _processes():
            config = self._config()
            rows, origin = self._rows(config)
            settings = self._settings()
            first = not dist.is_initialized() or dist.get_rank() == 0
            with alone_in(self.work) if first else nullcontext():
                trainer = Trainer(config, rows, settings, self.work)
                if not first:
                    trainer.run()
                    return None
                card = {"texts": origin, "rows": rows.name, "settings": asdict(settings)}
                check_model_out(trainer, self.out, card)
                with shown_work() as report:
                    trainer.run(lambda done: report("steps", done.step, settings.steps))
                check_model_out(trainer, self.out, card)  # hours may have passed
                write_model(trainer, self.out, card)
                self._write_tokenizer()
                return self._last()

    def _settings(self) -> PretrainSettings:
        o = self.options
        steps = o["steps"] or (2400 if o["retrieval"] else 1000)
        usual: dict[str, Any] = {"dense_steps": 200, "exit_weight": 0.0, "looking_weight": 0.0}
        if o["retrieval"]:
            usual = {"dense_steps": steps * 3 // 4, "exit_weight": 0.5, "looking_weight": 1.0}
        chosen = {name: value if o[name] is None else o[name] for name, value in usual.items()}
        return PretrainSettings(
            steps=steps, rows=o["rows"], learning_rate=o["learning_rate"], index_rate=o["index_rate"],
            save_every=o["save_every"], seed=o["seed"], **chosen,
        )  # fmt: skip

    def _last(self) -> Progress:
        last = (self.work / "losses.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        return Progress(**json.loads(last))

    def _config(self) -> MiniMaxM3Config:
        shape = self.options["shape"] or ("retrieval" if self.options["retrieval"] else "small")
        config = SHAPES.get(shape)
        if config is None:
            path = Path(shape)
            if not path.is_file():
                raise ArgumentError(f"config is {shape!r}; it must be {', '.join(SHAPES)}, or a file like config.json")
            config = MiniMaxM3Config.from_hf(read_json_object(path), str(path))
        tokenizer = self._tokenizer
        return config if tokenizer is None else replace(config, vocab_size=max(config.vocab_size, tokenizer.vocab_size))

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        if self.options["retrieval"] and self.options["tokenizer"] is not None:
            raise ArgumentError("--tokenizer is for texts; --retrieval has words of its own")
        return None if self._tokenizer_path is None else Tokenizer.from_directory(self._tokenizer_path)

    @cached_property
    def _tokenizer_path(self) -> Path | None:
        where = self.options["tokenizer"]
        return None if where is None else resolve(where)

    def _rows(self, config: MiniMaxM3Config) -> tuple[Rows, str]:
        """What to learn from, and where it is from."""
        o = self.options
        length = o["row_tokens"] or (512 if o["retrieval"] else 1024)
        if o["retrieval"]:
            if o["texts"]:
                raise ArgumentError(f"--text {o['texts'][0]} and --retrieval exclude each other")
            words = RETRIEVAL_WORDS
            if config.vocab_size < words.first + words.count:
                raise ArgumentError(
                    f"the model has {config.vocab_size} tokens; --retrieval needs {words.first + words.count}"
                )
            return RetrievalRows(words, length, seed=o["seed"]), "names with values, in noise"
        documents, origin = texts_of(o["texts"])
        learnt = [d for d in documents if not d.held_out] or documents
        tokenizer = self._tokenizer
        if tokenizer is not None:
            if not tokenizer.eos_ids:
                raise ArgumentError(f"{o['tokenizer']}: the tokenizer has no token that ends a text")
            return TextRows(learnt, tokenizer.encode, min(tokenizer.eos_ids), length, seed=o["seed"]), origin
        plain = bytes_tokenizer()
        end = plain.encode(END).ids[0]

        def encode(text: str) -> list[int]:
            return list(plain.encode(text).ids)

        return TextRows(learnt, encode, end, length, seed=o["seed"]), origin

    def _write_tokenizer(self) -> None:
        where = self._tokenizer_path
        if where is None:
            write_bytes_tokenizer(self.out, RETRIEVAL_WORDS.spelt() if self.options["retrieval"] else ())
            return
        for name in _TOKENIZER_FILES:
            if (where / name).exists():
                shutil.copyfile(where / name, self.out / name)


@contextmanager
def _processes() -> Iterator[None]:
    """Joins the others where torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
