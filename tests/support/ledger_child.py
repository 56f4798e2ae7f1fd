"""A process that appends to a ledger from several threads and prints each record's id once it is acknowledged.

Started by tests, and killed by them: python -m support.ledger_child LEDGER KEY PREFIX
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from freehold.governance.ledger.ledger import Ledger
from freehold.governance.signing import SigningKey
from support.ledgers import a_record, hashes_of


def main() -> None:
    """Append until killed."""
    path, key, prefix = Path(sys.argv[1]), SigningKey.load_or_create(Path(sys.argv[2])), sys.argv[3]
    ledger = Ledger(path, key, say=lambda text: print(f"say {text}", file=sys.stderr, flush=True))

    def work(thread: int) -> None:
        number = 0
        while True:
            hashes = hashes_of(number)
            name = f"{prefix}-{thread}-{number}"
            ledger.append(a_record(number, hashes, id=name), hashes.salt).result()
            os.write(1, f"{name}\n".encode())
            number += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
