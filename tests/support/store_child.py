"""A process that forks writers of a block store, for tests that kill them.

Each line on stdin, `DIRECTORY BLOCKS SEED`, starts one (BLOCKS 0: no limit). It writes `pid N` to stdout, then the key
of every block that the store calls stored; when it has ended, `ended` follows. Forking spares each its imports.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from freehold.cache.prefix import ROOT
from support.stored_blocks import BLOCK, RECORD_BYTES, open_store, put


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def write_until_killed(directory: Path, blocks: int, seed: int) -> None:
    """Stores random chains, and says what is stored."""
    say(f"pid {os.getpid()}")
    chance = random.Random(seed)
    parent = ROOT
    with open_store(directory, blocks=blocks or None, inflight_bytes=20 * RECORD_BYTES) as store:
        known = [record.key for record in store.children()]
        while True:
            if chance.random() < 0.2:
                parent = chance.choice([ROOT, *known])
            parent = put(store, parent, [chance.randrange(2**30) for _ in range(BLOCK)])
            for done in store.completed():
                if done.stored:
                    known.append(done.key)
                    say(done.key.hex())
            if known and chance.random() < 0.3:
                store.touch(chance.choice(known))
            if chance.random() < 0.05:
                store.flush()
            if chance.random() < 0.1:
                time.sleep(chance.random() / 200)


def main() -> None:
    for line in sys.stdin:
        directory, blocks, seed = line.rsplit(" ", 2)
        pid = os.fork()
        if pid == 0:
            write_until_killed(Path(directory), int(blocks), int(seed))
        os.waitpid(pid, 0)
        say("ended")


if __name__ == "__main__":
    main()
