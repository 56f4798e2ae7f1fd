"""Requests with images: same bits in any company, blocks that know what they show, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import freehold
from freehold.core.conversation import Conversation
from freehold.core.errors import ConfigError, RequestError, UnsupportedFieldError
from freehold.core.events import TokenEvent
from freehold.core.sampling import SamplingParams
from freehold.core.visuals import Frames, Placed, content_keys
from freehold.engine.chat import prepare_chat
from freehold.engine.request import Request
from freehold.engine.sight import Sight
from freehold.loading.quoting import quoted
from freehold.model import chat_visuals
from freehold.model.vision.budget import LIMITS
from support.engine_runs import logits_of_steps
from support.tiny_m3 import SHAPES, write_tiny_m3

ANSWER = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True}


def _image(seed: int, height: int = 84, width: int = 112) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _about(*images: Image.Image, text: str = "What is this?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*({"type": "image", "image": i} for i in images), text_part(text)]}]


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("seeing") / "checkpoint"
    write_tiny_m3(SHAPES["two_local_blocks"], directory)  # blocks of 32 tokens
    return directory


@pytest.fixture(scope="module")
def shared(checkpoint: Path) -> Iterator[freehold.LLM]:
    """A model for tests that do not ask what its cache holds."""
    with freehold.LLM(checkpoint, cache_tokens=8192) as loaded:
        yield loaded
        loaded.engine.cache.check_integrity()


@pytest.fixture
def llm(checkpoint: Path) -> Iterator[freehold.LLM]:
    """A model with an empty cache."""
    with freehold.LLM(checkpoint, cache_tokens=8192) as loaded:
        yield loaded
        loaded.engine.cache.check_integrity()


# ------------------------------------------------------------------------------------------------- same bits


@pytest.mark.parametrize("prefill_chunk", [1, 7, 33])
def test_chunks_that_end_anywhere_change_no_bit(checkpoint: Path, shared: freehold.LLM, prefill_chunk: int) -> None:
    """Chunks of one token end before, in and behind images, and between an image and the token that opens it."""
    ids, visuals = _without_system_turn(*shared.prompt(_about(_image(1, 56, 56), _image(2, 56, 84))))
    whole = shared.logits(ids, visuals=visuals)
    with freehold.LLM(checkpoint, cache_tokens=8192, prefill_chunk=prefill_chunk) as other:
        assert torch.equal(other.logits(ids, visuals=visuals), whole)
        assert _answer(other, ids, visuals) == _answer(shared, ids, visuals)


def _without_system_turn(ids: Sequence[int], visuals: Sequence[Placed]) -> tuple[list[int], list[Placed]]:
    """A prompt from shortly before its first image on; the tests are quicker so."""
    cut = visuals[0].runs[0].start - 6
    moved = [Placed(p.frames, tuple(range(r.start - cut, r.stop - cut) for r in p.runs)) for p in visuals]
    return list(ids[cut:]), moved


def _answer(llm: freehold.LLM, ids: Sequence[int], visuals: Sequence[Placed]) -> list[int]:
    events = llm.events(ids, SamplingParams(**ANSWER), visuals=visuals)
    return [event.token_id for event in events if isinstance(event, TokenEvent)]


def test_company_and_cache_hits_change_no_bit(llm: freehold.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, visuals = llm.prompt(_about(_image(1)))
    others = [llm.prompt(_about(_image(2))), llm.prompt([{"role": "user", "content": "Text alone."}])]
    alone = llm.logits(ids, visuals=visuals)
    seen = logits_of_steps(llm.engine, monkeypatch)
    params = SamplingParams(**ANSWER)
    for _ in range(2):  # the second time from the cache
        for prompt, shown in [(ids, visuals), *others]:
            llm.engine.submit(prompt, params, visuals=shown)
        while llm.engine.busy:
            llm.engine.step()
    firsts = [row for position, _, row in seen if position == len(ids) - 1]
    assert any(torch.equal(row, alone[-1]) for row in firsts)
    keys = content_keys(ids, visuals)
    mine = [row for _, tokens, row in seen if list(tokens) == keys]
    assert len(mine) == 2
    assert all(torch.equal(row, alone[-1]) for row in mine)


def test_answers_go_on_while_an_image_is_looked_at(llm: freehold.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment of looking in each step: the tower of a real model takes seconds for an image."""
    ids, visuals = llm.prompt(_about(_image(1), _image(2)))
    expected = _answer(llm, ids, visuals)
    engine, params = llm.engine, SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True)
    engine.sight = Sight(engine.sight._vision)
    look, moments = engine.sight.look, 0

    def short_look(requests: Iterable[Request], _seconds: float) -> None:
        nonlocal moments
        moments += engine.sight._begun is not None
        look(requests, 0.0)

    monkeypatch.setattr(engine.sight, "look", short_look)
    monkeypatch.setattr(engine.scheduler, "_ready", engine.sight.ready_tokens)
    engine.cache.clear()
    text = engine.submit(llm.prompt([{"role": "user", "content": "Text alone."}])[0], params)
    while not any(isinstance(event, TokenEvent) for event in engine.step()):
        pass
    seeing = engine.submit(ids, SamplingParams(**ANSWER), visuals=visuals)
    meanwhile, answer = 0, []
    while len(answer) < len(expected):
        for event in engine.step():
            if isinstance(event, TokenEvent) and event.request_id == seeing:
                answer.append(event.token_id)
            meanwhile += isinstance(event, TokenEvent) and event.request_id == text and not answer
    assert answer == expected
    assert engine.sight.num_encoded == 2
    assert meanwhile > moments >= 6  # a token of the text with every moment of looking
    for request_id in (text, seeing):
        engine.cancel(request_id)
    engine.step()


def test_an_image_counts_whatever_it_shows(shared: freehold.LLM) -> None:
    """Otherwise a model that never looks would pass."""
    ids, visuals = shared.prompt(_about(_image(1)))
    other_ids, others = shared.prompt(_about(_image(2)))
    assert ids == other_ids
    first, second = shared.logits(ids, visuals=visuals), shared.logits(ids, visuals=others)
    start = visuals[0].runs[0].start
    assert torch.equal(first[:start], second[:start])
    assert not torch.isclose(first[start:], second[start:]).all(dim=-1).any()


def test_text_needs_no_look(llm: freehold.LLM) -> None:
    llm.chat([{"role": "user", "content": "Hello."}], **ANSWER)
    assert llm.engine.sight.num_encoded == 0


# ------------------------------------------------------------------------------------------- what blocks know


def test_the_same_image_is_found_again_and_another_is_not(llm: freehold.LLM) -> None:
    first = llm.chat(_about(_image(1)), **ANSWER)
    again = llm.chat(_about(_image(1)), **ANSWER)
    other = llm.chat(_about(_image(2)), **ANSWER)
    opens = llm.prompt(_about(_image(1)))[1][0].runs[0].start - 1
    assert first.usage.cached_tokens == 0
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    assert again.token_ids == first.token_ids
    assert other.usage.prompt_tokens == first.usage.prompt_tokens
    assert other.usage.cached_tokens <= opens
    assert other.token_ids == _fresh(llm, _about(_image(2)))


def _fresh(llm: freehold.LLM, messages: list[dict[str, Any]]) -> tuple[int, ...]:
    """The greedy answer without the cache."""
    ids, visuals = llm.prompt(messages)
    answer: list[int] = []
    for _ in range(ANSWER["max_tokens"]):
        answer.append(int(llm.logits([*ids, *answer], visuals=visuals)[-1].argmax()))
    return tuple(answer)


def test_one_pixel_makes_another_image(llm: freehold.LLM) -> None:
    picture = _image(1)
    changed = picture.copy()
    changed.putpixel((111, 83), tuple(255 - v for v in picture.getpixel((111, 83))))
    llm.chat(_about(picture), **ANSWER)
    opens = llm.prompt(_about(picture))[1][0].runs[0].start - 1
    assert llm.chat(_about(changed), **ANSWER).usage.cached_tokens <= opens


def test_a_session_goes_on_after_its_image(llm: freehold.LLM) -> None:
    """What was sampled for an image is recognised when the conversation comes back with the same image."""
    messages = _about(_image(1))
    chat = prepare_chat(llm, Conversation(messages, (SamplingParams(),)), local=True)
    sampled = [e.token_id for e in llm.events(chat.ids, SamplingParams(**ANSWER), visuals=chat.visuals)
               if isinstance(e, TokenEvent)]  # fmt: skip
    chat.remember({"role": "assistant", "content": "as the client has it"}, sampled)
    back = [*messages, {"role": "assistant", "content": "as the client has it"}, {"role": "user", "content": "And?"}]
    again = prepare_chat(llm, Conversation(back, (SamplingParams(),)), local=True)
    assert again.ids[: len(chat.ids) + len(sampled)] == [*chat.ids, *sampled]
    assert [p.runs for p in again.visuals] == [p.runs for p in chat.visuals]
    other = prepare_chat(llm, Conversation([*_about(_image(2)), *back[1:]], (SamplingParams(),)), local=True)
    assert other.ids[: len(chat.ids) + len(sampled)] != [*chat.ids, *sampled]


def test_images_survive_a_restart_and_stay_apart_on_the_disk(checkpoint: Path, tmp_path: Path) -> None:
    long = "and so on " * 12
    options: dict[str, Any] = {"cache_tokens": 8192, "store_dir": str(tmp_path / "store")}
    with freehold.LLM(checkpoint, **options) as llm:
        first = llm.chat(_about(_image(1), text=long), **ANSWER)
        opens = llm.prompt(_about(_image(1), text=long))[1][0].runs[0].start - 1
    with freehold.LLM(checkpoint, **options) as llm:
        other = llm.chat(_about(_image(2), text=long), **ANSWER)
        again = llm.chat(_about(_image(1), text=long), **ANSWER)
        assert other.usage.cached_tokens <= opens
        assert again.usage.cached_tokens > opens + 12
        assert again.token_ids == first.token_ids
        assert llm.engine.sight.num_encoded == 1, "what stands in stored blocks need not be looked at again"
        llm.engine.cache.check_integrity()


def _frames(digest: bytes, num_tokens: int) -> Frames:
    return Frames("image", torch.empty(0), (1, 2, 2 * num_tokens), num_tokens, digest)


@st.composite
def _prompts(draw: st.DrawFn) -> tuple[list[int], list[range]]:
    ids: list[int] = []
    runs = []
    for _ in range(draw(st.integers(0, 4))):
        ids += draw(st.lists(st.integers(0, 1 << 40), max_size=4))
        length = draw(st.integers(1, 5))
        runs.append(range(len(ids), len(ids) + length))
        ids += [7] * length
    return ids, runs


@given(_prompts(), st.data())
def test_content_keys_tell_frames_apart(prompt: tuple[list[int], list[range]], data: st.DataObject) -> None:
    ids, runs = prompt
    digests = [data.draw(st.sampled_from([b"a" * 32, b"b" * 32])) for _ in runs]
    placed = [Placed(_frames(d, len(run)), (run,)) for d, run in zip(digests, runs, strict=True)]
    keys = content_keys(ids, placed)
    assert keys == content_keys(ids, placed)
    assert all(-(1 << 63) <= key < (1 << 63) for key in keys)
    rows = {position for run in runs for position in run}
    openers = {run.start - 1 for run in runs if run.start} - rows
    for position, key in enumerate(keys):
        assert (key < 0) == (position in rows or position in openers)
        assert key < 0 or key == ids[position]
    for number, run in enumerate(runs):
        swapped = [*placed]
        swapped[number] = Placed(_frames(b"c" * 32, len(run)), (run,))
        changed = {p for p, (a, b) in enumerate(zip(keys, content_keys(ids, swapped), strict=True)) if a != b}
        assert changed == set(run) | ({run.start - 1} & openers)


# --------------------------------------------------------------------------------------------- what is refused


def _refused(llm: freehold.LLM, content: Any, role: str = "user") -> str:
    with pytest.raises(RequestError) as caught:
        llm.chat([{"role": role, "content": content}, {"role": "user", "content": "?"}], max_tokens=1)
    return str(caught.value)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image"}, "must have its data"),
        ({"type": "image", "image": b"no image"}, "known are PNG"),
        ({"type": "image", "image": "http://127.0.0.1:1/cat.png"}, "is not fetched"),
        ({"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}, "is not fetched"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}, "'detail'"),
        ({"type": "image", "image": "/nowhere/cat.png"}, "cannot be read"),
        ({"type": "image", "image": 7}, "is no image"),
        ({"type": "image", "image": b"", "colour": 1}, "'colour'"),
        ({"type": "image", "image": "data:image/png;base64,!!"}, "base64"),
        ({"type": "image", "rows": [["", 1]], "digest": "00"}, "must have its data"),
        ({"type": "video", "video": []}, "between 1 and"),
        *(
            (
                {"type": "video", "video": [_image(1)] * 2, "fps": fps},
                f"'fps' is {quoted(fps)}; it must be a number from",
            )
            for fps in (0, -1, 5e-324, 1e-300, 9e-7, 1e300, 10**400, float("nan"), float("inf"), True, "2")
        ),
        ({"type": "video", "video": [_image(1), _image(2, 10, 10)]}, "one size"),
        ({"type": "image", "image": _image(1, 2, 600)}, "200 times"),
    ],
)
def test_what_cannot_be_seen_is_refused_by_name(shared: freehold.LLM, part: dict[str, Any], said: str) -> None:
    message = _refused(shared, [text_part("See:"), part])
    assert said in message
    assert "messages[0].content[1]" in message


@pytest.mark.parametrize("fps", [1e-6, 1, 2.5, 1e6])
def test_the_least_and_the_most_frames_a_second_are_taken(shared: freehold.LLM, fps: float) -> None:
    part = {"type": "video", "video": [_image(number) for number in range(4)], "fps": fps}
    ids, _ = shared.prompt([{"role": "user", "content": [part]}])
    assert f"{2 / fps:.1f} seconds" in shared.tokenizer.decode(ids)


def test_an_assistant_shows_nothing(shared: freehold.LLM) -> None:
    assert "assistant" in _refused(shared, [{"type": "image", "image": _image(1)}], role="assistant")


def test_paths_are_for_callers_on_this_machine(shared: freehold.LLM, tmp_path: Path) -> None:
    _image(1).save(tmp_path / "x.png")
    for value in (str(tmp_path / "x.png"), tmp_path / "x.png", _image(1)):
        messages = [{"role": "user", "content": [{"type": "image", "image": value}]}]
        assert shared.prompt(messages)[1]
        with pytest.raises(RequestError, match=r"no data URL|is no image"):
            prepare_chat(shared, Conversation(messages, (SamplingParams(),)))


def test_rows_and_frames_must_fit(shared: freehold.LLM) -> None:
    ids, visuals = shared.prompt(_about(_image(1)))
    (run,) = visuals[0].runs
    for runs in ((run[:-1],), (run, run), (range(len(ids) - 3, len(ids) - 3 + len(run)),), (run[::-1],)):
        with pytest.raises(RequestError):
            shared.engine.submit(ids, SamplingParams(), visuals=[Placed(visuals[0].frames, runs)])


def test_models_that_see_nothing_say_so(tmp_path: Path, checkpoint: Path) -> None:
    blind = _without_vision(checkpoint, tmp_path / "blind")
    with freehold.LLM(blind, cache_tokens=4096) as llm:
        with pytest.raises(UnsupportedFieldError, match="takes no images"):
            llm.chat(_about(_image(1)), max_tokens=1)
        assert llm.chat([{"role": "user", "content": "Hello."}], **ANSWER).token_ids


def test_damaged_sets_of_weights_are_refused_by_name(tmp_path: Path, checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    from freehold.core.errors import TensorMismatchError

    whole = load_file(checkpoint / "model.safetensors")
    norm = "vision_tower.vision_model.pre_layrnorm.bias"
    for change, said in (
        ({norm: None}, f"missing (1):\n    {norm}"),
        ({"vision_tower.other.weight": torch.zeros(3)}, "unexpected (1):\n    vision_tower.other.weight"),
        ({norm: torch.zeros(3)}, f"wrong shape (1):\n    {norm}"),
    ):
        directory = _copy(checkpoint, tmp_path / said[:7])
        tensors = {k: v for k, v in {**whole, **change}.items() if v is not None}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(TensorMismatchError) as caught:
            freehold.LLM(directory, cache_tokens=4096)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, "'image_mean'"),
        ("preprocessor_config.json", {"max_pixels": 1000}, "'max_pixels'"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 1, "longest_edge": 451584}}, "'size'"),
        ("video_preprocessor_config.json", {"vision_segment_max_frames": 8}, "'vision_segment_max_frames'"),
        ("processor_config.json", {"image_processor": {"do_resize": False}}, "'do_resize'"),
        ("preprocessor_config.json", {"size": [672, 672], "patch_size": 14, "max_image_resolution": 1008}, None),
    ],
)
def test_files_that_ask_for_other_pixels_are_refused(
    tmp_path: Path, checkpoint: Path, name: str, values: dict[str, Any], said: str | None
) -> None:
    directory = _copy(checkpoint, tmp_path / "asking")
    (directory / name).write_text(json.dumps(values))
    if said is None:
        freehold.LLM(directory, cache_tokens=4096).close()
        return
    with pytest.raises(ConfigError, match=said):
        freehold.LLM(directory, cache_tokens=4096)


def test_a_conversation_holds_a_most_of_images(shared: freehold.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_visuals, "MAX_VISUALS", 2)
    with pytest.raises(RequestError, match="holds 3 images"):
        shared.prompt(_about(*[_image(1)] * 3))
    monkeypatch.setitem(LIMITS, "pixels", replace(LIMITS["pixels"], most=84 * 112 + 1))
    assert shared.prompt(_about(_image(1)))
    with pytest.raises(RequestError, match=rf"has {2 * 84 * 112} pixels of images .* at most 9409 are taken"):
        shared.prompt(_about(_image(1), _image(2)))


def _copy(checkpoint: Path, directory: Path) -> Path:
    import shutil

    return Path(shutil.copytree(checkpoint, directory))


def _without_vision(checkpoint: Path, directory: Path) -> Path:
    from safetensors.torch import load_file, save_file

    from freehold.model.vision.names import PARTS

    _copy(checkpoint, directory)
    tensors = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(PARTS)}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
