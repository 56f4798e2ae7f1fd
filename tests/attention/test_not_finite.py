"""Numbers that are none must show in what attention returns: a row that looks healthy and is not would go unseen."""

from __future__ import annotations

import pytest
import torch

from freehold import kernels
from freehold.attention import dense_attention
from support.instruction_sets import supported

ISAS = supported()


@pytest.fixture(params=ISAS, autouse=True)
def instruction_set(request):
    kernels.use_isa(request.param)
    yield request.param
    kernels.use_isa(ISAS[-1])


def rows_that_are_numbers(q, k, v, impl: str) -> torch.Tensor:
    return dense_attention(q, k, v, query_start=k.shape[0] - q.shape[0], impl=impl).isfinite().all(dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 5, 127, 128, 255, 290])
def test_a_key_that_is_no_number_is_not_hidden(dtype, bad, place):
    torch.manual_seed(0)
    q, k, v = torch.rand(8, 4, 16), torch.randn(300, 2, 16), torch.randn(300, 2, 16)
    k[place, 0, 3] = bad
    q, k, v = (t.to(dtype) for t in (q, k, v))
    got = rows_that_are_numbers(q, k, v, "native")
    assert not got[:, :2].any()
    assert got[:, 2:].all()
    assert torch.equal(got, rows_that_are_numbers(q, k, v, "reference"))


def test_a_query_that_is_no_number_is_not_hidden():
    torch.manual_seed(0)
    q, k, v = torch.randn(8, 4, 16), torch.randn(300, 2, 16), torch.randn(300, 2, 16)
    q[3, 1, 0] = float("nan")
    got = rows_that_are_numbers(q, k, v, "native")
    assert not got[3, 1]
    assert int(got.sum()) == 31


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_at_minus_infinity_weigh_nothing(dtype):
    torch.manual_seed(0)
    q, k, v = torch.rand(2, 2, 16) + 0.1, torch.randn(300, 2, 16), torch.randn(300, 2, 16)
    k[:200, :, 3] = -float("inf")  # the whole first block, and a part of the second one
    q, k, v = (t.to(dtype) for t in (q, k, v))
    got = dense_attention(q, k, v, query_start=298, impl="native")
    wanted = dense_attention(q, k, v, query_start=298, impl="reference")
    torch.testing.assert_close(got, wanted, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)
