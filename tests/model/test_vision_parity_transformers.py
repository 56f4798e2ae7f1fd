"""Images and videos against transformers: pixel rows, token ids, embeddings, logits and greedy continuations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import freehold
from freehold.core.visuals import Placed
from freehold.loading.checkpoint import open_checkpoint
from freehold.model.compute import compute_for
from freehold.model.m3_tokens import IMAGE
from freehold.model.vision.encoder import VisionEncoder
from freehold.model.vision.image import image_frames, read_pixels
from freehold.model.vision.patches import patch_rows
from support.m3_processor import Processed, process
from support.tiny_m3 import SHAPES, write_tiny_m3

PIXEL_TOLERANCE = 1e-6
TOLERANCE = 2e-4
ANSWER = 16
IMPLS = ("reference", "native")
# height, width
SIZES = [
    (1, 1), (20, 300), (30, 30), (100, 2000), (57, 13), (671, 673), (14, 42), (480, 640), (1080, 1920), (1999, 10),
]  # fmt: skip
FRAMES = 11


def _noise(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def _write_odd_files(folder: Path) -> list[Path]:
    """One file for each kind of pixels that is not plain RGB."""
    made: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("rgba.png", Image.fromarray(_noise(1, 70, 90, 4)), {}),
        ("grey.png", Image.fromarray(_noise(2, 70, 90)[..., 0]), {}),
        ("grey_alpha.png", Image.fromarray(_noise(3, 70, 90, 2), "LA"), {}),
        ("black_white.png", Image.fromarray(_noise(4, 70, 90)).convert("1"), {}),
        ("palette.gif", Image.fromarray(_noise(5, 70, 90)).quantize(64), {"transparency": 7}),
        ("cmyk.jpg", Image.fromarray(_noise(6, 70, 90, 4), "CMYK"), {}),
        ("lossy.webp", Image.fromarray(_noise(7, 70, 90)), {}),
    ]
    turned = Image.fromarray(_noise(8, 60, 120))
    exif = turned.getexif()
    exif[0x0112] = 6  # turn right
    made.append(("turned.jpg", turned, {"exif": exif}))
    paths = []
    for name, picture, options in made:
        picture.save(folder / name, **options)
        paths.append(folder / name)
    return paths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vision")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """transformers' model, whose checkpoint is in `folder`."""
    return write_tiny_m3(SHAPES["release_selection"], folder / "checkpoint")


@pytest.fixture(scope="module")
def llm(folder: Path, model: Any) -> Iterator[Callable[[str], freehold.LLM]]:
    loaded: dict[str, freehold.LLM] = {}

    @cache
    def load(impl: str) -> freehold.LLM:
        loaded[impl] = freehold.LLM(folder / "checkpoint", impl=impl, prefill_chunk=100)
        return loaded[impl]

    yield load
    for one in loaded.values():
        one.close()


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, list[Path]]:
    sizes = []
    for number, (height, width) in enumerate(SIZES):
        sizes.append(folder / f"{height}x{width}.png")
        Image.fromarray(_noise(100 + number, height, width)).save(sizes[-1])
    frames = []
    for number in range(FRAMES):
        frames.append(folder / f"frame{number}.png")
        Image.fromarray(_noise(200 + number, 112, 140)).save(frames[-1])
    return {"sizes": sizes, "odd": _write_odd_files(folder), "frames": frames}


def _conversations(files: dict[str, list[Path]]) -> dict[str, list[dict[str, Any]]]:
    first, second = files["sizes"][1], files["odd"][0]
    frames = [str(path) for path in files["frames"]]
    images = [
        {"type": "text", "text": "What is on this picture,"},
        {"type": "image", "image": str(first)},
        {"type": "text", "text": " and what on that one? "},
        {"type": "image_url", "image_url": {"url": str(second)}},
        {"type": "text", "text": f"Not on {IMAGE} there."},
    ]
    video = [{"type": "text", "text": "Then? "}, {"type": "video", "video": frames, "fps": 2.0}]
    return {
        "images": [{"role": "user", "content": images}],
        "video": [{"role": "user", "content": video}],
        "all": [
            {"role": "user", "content": [images[1], images[0]]},
            {"role": "assistant", "content": f"Nothing but {IMAGE}."},
            {"role": "user", "content": [*video, {"type": "image", "image": str(second)}]},
        ],
    }


def _job(llm: freehold.LLM, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What transformers' processor is asked: the text of the template with markers in it. A text that merely spells a
    marker is left out of it: transformers cannot tell the two apart."""
    plain: list[dict[str, Any]] = []
    job: dict[str, Any] = {"images": []}
    for message in messages:
        parts: Any = message["content"]
        if isinstance(parts, list):
            for part in parts:
                if part["type"] == "image":
                    job["images"].append(part["image"])
                elif part["type"] == "image_url":
                    job["images"].append(part["image_url"]["url"])
                elif part["type"] == "video":
                    job |= {"frames": part["video"], "fps": part["fps"]}
            parts = [
                {"type": "text", "text": part["text"].replace(IMAGE, "\N{BULLET}")}
                if part["type"] == "text"
                else {"type": part["type"]}
                for part in parts
            ]
        else:
            parts = parts.replace(IMAGE, "\N{BULLET}")
        plain.append({**message, "content": parts})
    return {**job, "text": llm.chat_format.render(plain)}


@pytest.fixture(scope="module")
def processed(folder: Path, files: dict[str, list[Path]], llm: Callable[[str], freehold.LLM]) -> dict[str, Processed]:
    """transformers' own inputs, by file name and by conversation."""
    single = [*files["sizes"], *files["odd"]]
    jobs: dict[str, dict[str, Any]] = {path.name: {"text": IMAGE, "images": [str(path)]} for path in single}
    jobs |= {name: _job(llm("native"), messages) for name, messages in _conversations(files).items()}
    made = process(list(jobs.values()), folder / "checkpoint", folder / "processed.safetensors")
    return dict(zip(jobs, made, strict=True))


def _greedy(model: Any, ids: list[int], given: dict[str, torch.Tensor]) -> list[int]:
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            **given,
            max_new_tokens=ANSWER,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[0, len(ids) :].tolist()  # type: ignore[no-any-return]


NAMES = [f"{h}x{w}.png" for h, w in SIZES] + [
    "rgba.png", "grey.png", "grey_alpha.png", "black_white.png", "palette.gif", "cmyk.jpg", "lossy.webp", "turned.jpg",
]  # fmt: skip
SMALL = ("1x1.png", "20x300.png", "57x13.png", "14x42.png", "rgba.png")


@pytest.fixture(scope="module")
def encoders(folder: Path, model: Any) -> dict[str, VisionEncoder]:
    found = {}
    for impl in IMPLS:
        with open_checkpoint(folder / "checkpoint") as checkpoint:
            encoder = VisionEncoder.from_checkpoint(checkpoint, compute_for(impl)[0])
        assert encoder is not None
        found[impl] = encoder
    return found


@pytest.mark.parametrize("name", NAMES)
def test_pixel_rows_agree(
    folder: Path, processed: dict[str, Processed], encoders: dict[str, VisionEncoder], name: str
) -> None:
    theirs, config = processed[name], encoders["native"].config
    frames = image_frames(read_pixels(folder / name, local=True), config)
    assert [list(frames.grid)] == theirs.grid["image"].tolist()
    rows = patch_rows(frames, config)
    assert float((rows - theirs.pixels["image"]).abs().max()) <= PIXEL_TOLERANCE


@pytest.mark.parametrize(
    "name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_embeddings_agree(
    folder: Path, processed: dict[str, Processed], model: Any, encoders: dict[str, VisionEncoder], name: str
) -> None:
    theirs = processed[name]
    frames = image_frames(read_pixels(folder / name, local=True), encoders["native"].config)
    with torch.no_grad():
        made = model.model.get_image_features(theirs.pixels["image"], theirs.grid["image"], return_dict=True)
    wanted = torch.cat(made.pooler_output)
    assert frames.num_tokens == len(wanted)
    for impl, encoder in encoders.items():
        assert float((encoder(frames) - wanted).abs().max()) <= TOLERANCE, impl


def _prompt(
    llm: freehold.LLM, files: dict[str, list[Path]], name: str
) -> tuple[list[dict[str, Any]], list[int], tuple[Placed, ...]]:
    """A conversation without texts that merely spell a marker."""
    messages = _conversations(files)[name]
    for message in messages:
        if isinstance(message["content"], str):
            message["content"] = message["content"].replace(IMAGE, "\N{BULLET}")
        else:
            message["content"] = [
                {**part, "text": part["text"].replace(IMAGE, "\N{BULLET}")} if part["type"] == "text" else part
                for part in message["content"]
            ]
    return messages, *llm.prompt(messages)


@pytest.mark.parametrize("name", ["images", "video", pytest.param("all", marks=pytest.mark.slow)])
def test_prompts_logits_and_answers_agree(
    files: dict[str, list[Path]],
    processed: dict[str, Processed],
    model: Any,
    llm: Callable[[str], freehold.LLM],
    name: str,
) -> None:
    theirs = processed[name]
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([theirs.token_ids]), use_cache=False, **theirs.inputs()).logits[0]
    answer = _greedy(model, theirs.token_ids, theirs.inputs())
    for impl in IMPLS:
        messages, ids, visuals = _prompt(llm(impl), files, name)
        assert ids == theirs.token_ids
        logits = llm(impl).logits(ids, visuals=visuals)
        assert float((logits - wanted).abs().max()) <= TOLERANCE, impl
        if impl == "native" or name == "all":  # the reference is slow
            ours = llm(impl).chat(messages, max_tokens=ANSWER, temperature=0.0, ignore_eos=True)
            assert list(ours.token_ids) == answer, impl


def test_eleven_frames_make_two_segments(
    files: dict[str, list[Path]], processed: dict[str, Processed], llm: Callable[[str], freehold.LLM]
) -> None:
    _, _, visuals = _prompt(llm("native"), files, "video")
    assert [placed.frames.grid for placed in visuals] == [(4, 8, 10), (2, 8, 10)]
    assert processed["video"].grid["video"].tolist() == [[4, 8, 10], [2, 8, 10]]
    config = llm("native").engine.sight._vision.config  # type: ignore[union-attr]
    rows = torch.cat([patch_rows(placed.frames, config) for placed in visuals])
    assert float((rows - processed["video"].pixels["video"]).abs().max()) <= PIXEL_TOLERANCE


@pytest.mark.parametrize("name", ["images", "all"])
def test_text_that_spells_a_marker_is_no_image(
    files: dict[str, list[Path]], llm: Callable[[str], freehold.LLM], name: str
) -> None:
    one = llm("native")
    messages = _conversations(files)[name]
    ids, visuals = one.prompt(messages)
    image = one.tokenizer.encode(IMAGE, allow_special=True, add_bos=False)[0]
    rows = {position for placed in visuals if placed.frames.kind == "image" for run in placed.runs for position in run}
    assert {position for position, token in enumerate(ids) if token == image} == rows
