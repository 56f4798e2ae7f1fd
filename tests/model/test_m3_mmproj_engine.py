"""A GGUF model with its vision part in a file of its own sees what the release sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import freehold
from freehold.cli.main import main
from freehold.core.errors import ConfigError
from freehold.loading.checkpoint import open_checkpoint
from freehold.model.vision.names import PARTS
from support.tiny_llama import LLAMAS, write_tiny_llama
from support.tiny_m3 import TinyM3Spec, write_tiny_m3, write_tiny_m3_gguf
from support.tiny_m3_mmproj import vision_keys, vision_tensors, write_mmproj

SPEC = TinyM3Spec("vision", (0, 1), (0, 1), num_experts=4)
HEAD_DIM = 16


class Files(NamedTuple):
    """The same model twice, and an image."""

    release: Path
    model: Path
    mmproj: Path
    image: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("mmproj")
    write_tiny_m3(SPEC, folder / "release")
    write_tiny_m3_gguf(SPEC, folder / "model.gguf", special=True)
    with open_checkpoint(folder / "release") as checkpoint:
        weights = {
            name: checkpoint.tensor(name).numpy().copy() for name in checkpoint.tensors if name.startswith(PARTS)
        }
    config = json.loads((folder / "release" / "config.json").read_text())
    mmproj = write_mmproj(folder / "mmproj.gguf", vision_keys(config), vision_tensors(weights, HEAD_DIM))
    pixels = torch.randint(0, 256, (70, 100, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(folder / "image.png")
    return Files(folder / "release", folder / "model.gguf", mmproj, folder / "image.png")


def messages(image: Path) -> list[dict[str, object]]:
    parts = [{"type": "text", "text": "What is"}, {"type": "image", "path": str(image)}, {"type": "text", "text": "?"}]
    return [{"role": "user", "content": parts}]


def logits(model: Path, image: Path, **options: str) -> torch.Tensor:
    with freehold.LLM(model, **options) as llm:
        ids, visuals = llm.prompt(messages(image))
        assert visuals
        return llm.engine.score(ids, visuals=visuals)


def test_the_same_bits_as_the_release(files: Files) -> None:
    ours = logits(files.model, files.image, mmproj=str(files.mmproj))
    assert torch.equal(ours, logits(files.release, files.image))


def test_blocks_of_another_tower_are_not_found(files: Files, tmp_path: Path) -> None:
    """The tower is part of whose blocks they are."""
    other = json.loads((files.release / "config.json").read_text())
    with open_checkpoint(files.release) as checkpoint:
        weights = {name: checkpoint.tensor(name).numpy() * 0.5 for name in checkpoint.tensors if name.startswith(PARTS)}
    changed = write_mmproj(tmp_path / "other.gguf", vision_keys(other), vision_tensors(weights, HEAD_DIM))
    cached = []
    for mmproj in (files.mmproj, files.mmproj, changed):
        with freehold.LLM(files.model, mmproj=str(mmproj), store_dir=str(tmp_path / "store")) as llm:
            chat = messages(files.image)
            chat[0]["content"] = [*chat[0]["content"], {"type": "text", "text": " word" * 200}]  # type: ignore[misc]
            cached.append(llm.chat(chat, max_tokens=1).usage.cached_tokens)
    assert cached[1] > 0 == cached[0] == cached[2]


def test_a_model_that_sees_already_or_cannot(files: Files, tmp_path: Path) -> None:
    write_tiny_llama(next(iter(LLAMAS.values())), tmp_path / "llama")
    for model in (files.release, tmp_path / "llama"):
        with pytest.raises(ConfigError, match="goes with a GGUF file of minimax-m3"):
            freehold.LLM(model, mmproj=str(files.mmproj))


def test_a_vocabulary_without_images(files: Files, tmp_path: Path) -> None:
    write_tiny_m3_gguf(SPEC, tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match=r"vocabulary has no token .*image"):
        freehold.LLM(tmp_path / "model.gguf", mmproj=str(files.mmproj))


def test_a_tower_of_another_model(files: Files, tmp_path: Path) -> None:
    spec = TinyM3Spec("wider", (0, 1), (0, 1), 128, num_experts=4)
    write_tiny_m3_gguf(spec, tmp_path / "model.gguf", special=True)
    with pytest.raises(ConfigError, match=r"makes rows of \d+ numbers, and the text model takes 128"):
        freehold.LLM(tmp_path / "model.gguf", mmproj=str(files.mmproj))


def test_the_terminal_shows_images(files: Files) -> None:
    """`generate --image` and `/image` in a chat; without a tower both say so."""
    image = ["--image", str(files.image)]
    seeing = [str(files.model), "--mmproj", str(files.mmproj), "--temperature", "0", "--max-tokens", "4"]
    run = CliRunner().invoke
    done = run(main, ["generate", "--model", *seeing, "--chat", "--prompt", "?", *image, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["usage"]["prompt_tokens"] > 10
    blind = run(main, ["generate", "--model", *seeing, "--prompt", "?", *image])
    assert blind.exit_code == 2
    assert "add --chat" in blind.output
    talk = run(main, ["chat", *seeing], input=f"/image {files.image}\nWhat?\n")
    assert talk.exit_code == 0, talk.output
    for arguments, text in (([str(files.model)], "takes no images"), (seeing, "is no file")):
        refused = run(main, ["chat", *arguments], input="/image nowhere.png\nWhat?\n")
        assert refused.exit_code == 1
        assert text in refused.output
