"""Thread counts: what is refused, and what happens where the system grants fewer, or the process forks."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from freehold import kernels
from freehold.attention import select_blocks
from freehold.core.errors import ArgumentError

FEW_GRANTED = """
import resource, torch
from freehold import kernels
from freehold.attention import select_blocks

torch.set_num_threads(1)
q, k = torch.randn(512, 4, 32), torch.randn(20_000, 32)
options = {"query_start": 19_000, "topk": 4, "impl": "native"}
kernels.set_threads(1)
wanted = select_blocks(q, k, **options)
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * resource.getpagesize() + 100 * 2**20  # a thread's stack takes 8 MiB of it
resource.setrlimit(resource.RLIMIT_AS, (room, room))
kernels.set_threads(200)
assert torch.equal(select_blocks(q, k, **options), wanted)
"""

FORKED = """
import os, time, torch
from freehold import kernels
from freehold.attention import select_blocks

torch.set_num_threads(1)
kernels.set_threads(4)
q, k = torch.randn(64, 4, 32), torch.randn(9_000, 32)
options = {"query_start": 8_000, "topk": 4, "impl": "native"}
for wait in (0, 0.02):
    wanted = select_blocks(q, k, **options)
    time.sleep(wait)  # helpers are awake at first, and then asleep
    child = os.fork()
    if child == 0:
        os._exit(0 if all(torch.equal(select_blocks(q, k, **options), wanted) for _ in range(20)) else 1)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("count", [0, -1, 2**31, 2**40, 2.5])
def test_a_count_that_is_none_is_refused(count):
    with pytest.raises(ArgumentError, match="threads is"):
        kernels.set_threads(count)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_where_the_system_grants_fewer_threads_those_do_the_work():
    subprocess.run([sys.executable, "-c", FEW_GRANTED], check=True, timeout=120)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_process_computes():
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)


def test_calls_from_several_threads_at_once():
    torch.manual_seed(0)
    cases = [(torch.randn(n, 2, 24), torch.randn(3_000 + n, 24)) for n in (1, 5, 33, 64)]
    options = {"query_start": 2_900, "block_tokens": 16, "topk": 5, "impl": "native"}
    wanted = [select_blocks(q, k, **options) for q, k in cases]
    with ThreadPoolExecutor(4) as pool:
        jobs = [(i % 4, pool.submit(select_blocks, *cases[i % 4], **options)) for i in range(80)]
        for case, job in jobs:
            assert torch.equal(job.result(), wanted[case])


def test_threads_that_ask_for_numbers_at_once_get_their_own_back():
    """Another number of torch's in each thread, and the first to begin is the first to end."""
    before = torch.get_num_threads(), kernels.threads()
    begun, ended = threading.Event(), threading.Event()
    other = []

    def call():
        torch.get_num_threads()
        torch.set_num_threads(5)
        with kernels.using_threads(1):
            begun.set()
            assert ended.wait(20)
        other.append(torch.get_num_threads())

    torch.set_num_threads(8)
    kernels.set_threads(3)
    thread = threading.Thread(target=call)
    try:
        thread.start()
        assert begun.wait(20)
        with kernels.using_threads(4):
            with kernels.using_threads(2):
                assert (torch.get_num_threads(), kernels.threads()) == (2, 2)
            assert (torch.get_num_threads(), kernels.threads()) == (4, 4)
            ended.set()
            thread.join(20)
            assert (torch.get_num_threads(), kernels.threads()) == (4, 4)
        assert (torch.get_num_threads(), kernels.threads()) == (8, 3)
        assert other == [5]
    finally:
        torch.set_num_threads(before[0])
        kernels.set_threads(before[1])


def test_a_number_that_is_none_changes_nothing():
    before = torch.get_num_threads(), kernels.threads()
    with pytest.raises(ArgumentError, match="threads is 0"), kernels.using_threads(0):
        pass
    assert (torch.get_num_threads(), kernels.threads()) == before
