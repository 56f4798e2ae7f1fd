"""Encoding into GGML's blocks: what the blocks say, by the gguf package's own reading."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold import kernels
from freehold.core.errors import ArgumentError
from freehold.kernels import encode
from support.instruction_sets import supported

KINDS = ("Q8_0", "Q4_1")
LOWEST = {"Q8_0": -127, "Q4_1": 0}
HIGHEST = {"Q8_0": 127, "Q4_1": 15}
NBYTES = {"Q8_0": 34, "Q4_1": 20}


def decoded(blocks: torch.Tensor, kind: str) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]))


def rows(seed: int, shape: tuple[int, int], *, tails: bool = False) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values**3 if tails else values


def stored(blocks: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and offsets (rows, blocks), as a block begins."""
    first = blocks.reshape(len(blocks), -1, NBYTES[kind])[..., :4].contiguous().view(torch.float16).float()
    return first[..., 0], first[..., 1] if kind == "Q4_1" else torch.zeros_like(first[..., 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 32), (3, 96), (65, 256), (7, 576)])
def test_the_error_is_that_of_the_blocks(kind: str, shape: tuple[int, int]) -> None:
    x = rows(1, shape)
    blocks, squared = encode(x, kind)
    off = (decoded(blocks, kind).double() - x.double()).square().sum()
    assert squared == pytest.approx(float(off), rel=1e-12)


@pytest.mark.parametrize("tails", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_worse_than_the_gguf_package(kind: str, tails: bool) -> None:
    x = rows(2, (64, 512), tails=tails)
    theirs = torch.from_numpy(gguf.quantize(x.numpy(), gguf.GGMLQuantizationType[kind]))
    theirs_off = float((decoded(theirs, kind).double() - x.double()).square().sum())
    assert encode(x, kind)[1] <= theirs_off * (1.0005 if kind == "Q8_0" else 0.9)


@pytest.mark.parametrize("kind", KINDS)
def test_each_code_is_the_nearest(kind: str) -> None:
    x = rows(3, (16, 320))
    blocks, _ = encode(x, kind)
    scale, offset = (values.repeat_interleave(32, 1).double() for values in stored(blocks, kind))
    codes = ((x.double() - offset) / scale).round().clamp(LOWEST[kind], HIGHEST[kind])
    off, ours = (codes * scale + offset - x).abs(), (decoded(blocks, kind).double() - x).abs()
    assert (ours <= off * (1 + 1e-6) + 1e-12).all()  # a tie may go either way


@pytest.mark.parametrize("kind", KINDS)
def test_values_on_a_grid_are_kept(kind: str) -> None:
    codes = torch.randint(LOWEST[kind], HIGHEST[kind] + 1, (8, 64), generator=torch.Generator().manual_seed(4)).float()
    codes[:, ::32], codes[:, 1::32] = LOWEST[kind], HIGHEST[kind]
    x = codes * 0.0625 - (0.25 if kind == "Q4_1" else 0.0)
    blocks, squared = encode(x, kind)
    assert squared == 0.0
    assert torch.equal(decoded(blocks, kind), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, -1e-6, 3e-8, 65504.0 * 127, -1e9, 3.4e38])
def test_extreme_blocks(kind: str, value: float) -> None:
    x = torch.zeros(1, 64)
    x[0, 5] = value
    x[0, 40] = 1.0
    restored = decoded(encode(x, kind)[0], kind)
    assert restored.isfinite().all()
    assert restored[0, 40] == pytest.approx(1.0, rel=0.02)
    others = restored[0, :32][torch.arange(32) != 5]
    assert (others.abs() <= 2e-7 + 0.03 * min(abs(value), 65504 * 127)).all()
    largest = 65504.0 * 127 if kind == "Q8_0" else 65504.0 * (16 if value > 0 else 1)
    if abs(value) >= 1e-3:  # smaller scales are no float16
        wanted = max(-largest, min(value, largest))
        assert restored[0, 5] == pytest.approx(wanted, rel=0.2 if abs(value) >= largest else 0.05)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(-12, 12), columns=st.integers(1, 5))
def test_every_instruction_set_writes_the_same_bytes(kind: str, seed: int, spread: float, columns: int) -> None:
    x = rows(seed, (5, 32 * columns), tails=True) * 10.0**spread
    found = []
    for name in supported():
        kernels.use_isa(name)
        found.append(encode(x, kind)[0])
    for other in found[1:]:
        assert torch.equal(found[0], other)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_each_other(kind: str) -> None:
    x = rows(6, (33, 64))
    whole, _ = encode(x, kind)
    assert torch.equal(whole, torch.cat([encode(x[i : i + 1], kind)[0] for i in range(33)]))


def test_half_floats_are_rounded_as_numpy_does() -> None:
    """By the scales of Q8_0, which are the largest value over 127."""
    wanted = np.random.default_rng(7).uniform(-24, 15, 4000)
    largest = torch.from_numpy(2.0**wanted).float() * 127
    x = torch.zeros(len(largest), 32)
    x[:, 0] = largest
    expected = (largest / 127).numpy().astype(np.float16)
    assert np.array_equal(stored(encode(x, "Q8_0")[0], "Q8_0")[0][:, 0].numpy().astype(np.float16), expected)


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [((4, 32), "Q4_K", "kind is 'Q4_K'"), ((4, 33), "Q8_0", "multiple of 32"), ((4, 0), "Q8_0", "multiple of 32")],
)
def test_refused(shape: tuple[int, int], kind: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        encode(torch.zeros(shape), kind)
