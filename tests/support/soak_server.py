"""A server process that tells what it holds: a child of the soak test.

`python -m support.soak_server CHECKPOINT` serves on a free port and prints its URL; then every line on stdin is
answered with one JSON line: what is held at that moment. The end of stdin ends the server, which prints how it ended.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from freehold import LLM
from freehold.cli.served_model import ServedModel
from freehold.server.operation.options import ServerOptions
from freehold.server.run import reserve_port, serve

CACHE_TOKENS = 6000
MAX_RUNNING = 48
TIMEOUT_SECONDS = 6.0
POOLED = "AnyIO worker thread"
"""Name of the threads that the web framework keeps for blocking calls."""


def main() -> None:
    """See the module."""
    options = ServerOptions(keepalive_seconds=1.0, access_log=False, log_level="critical", drain_seconds=0)
    with LLM(
        sys.argv[1],
        cache_tokens=CACHE_TOKENS,
        default_block_tokens=16,
        max_running=MAX_RUNNING,
        timeout_seconds=TIMEOUT_SECONDS,
        threads=1,
    ) as llm:
        model = ServedModel(llm)
        with model:

            def ready(url: str) -> None:
                print(url, flush=True)
                looker = threading.Thread(target=_answer, args=(llm, model, asyncio.get_running_loop()), daemon=True)
                looker.start()

            ended_well = serve(model, listener=reserve_port("127.0.0.1", 0), options=options, on_ready=ready)
        print(json.dumps({"ended_well": ended_well}), flush=True)


def _answer(llm: LLM, model: ServedModel, loop: asyncio.AbstractEventLoop) -> None:
    for _ in sys.stdin:
        print(json.dumps(_held(llm, model, loop)), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def _held(llm: LLM, model: ServedModel, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    """Counts of everything that a request takes and has to give back. The engine must be idle for `fault`."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    engine, cache = llm.engine, llm.engine.cache.stats()
    driver = model._driver
    threads = [thread.name for thread in threading.enumerate()]
    pooled = threads.count(POOLED)
    fault = ""
    if not engine.busy:
        try:
            engine.cache.check_integrity()
        except AssertionError as error:
            fault = str(error)
    return {
        "busy": engine.busy,
        "streams": len(driver._streams),
        "waiting": len(engine.scheduler.waiting),
        "running": len(engine.scheduler.running),
        "tasks": asyncio.run_coroutine_threadsafe(_num_tasks(), loop).result(10),
        "threads": len(threads) - pooled,
        "pooled_threads": pooled,
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "sequences": len(engine.cache._open),
        "blocks": cache.num_blocks,
        "blocks_free": cache.num_free,
        "blocks_kept": cache.num_kept,
        "failed_audits": driver.num_failed_audits,
        "fault": fault,
        "resident_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
    }


async def _num_tasks() -> int:
    return len(asyncio.all_tasks()) - 1  # without this one


if __name__ == "__main__":
    main()
