"""Run a command in an empty network namespace and write down whom it tries to reach.

    python -m support.phone_home RECORD COMMAND [ARGUMENT ...]

Nothing is refused: a socket may be made, and a connection fails as on a machine without a network. Every address that
is given to the kernel, in this process or in one that it starts, is a line in RECORD.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from freehold.governance.egress.filter import forbid_new_privileges, install, watch_filter
from freehold.governance.egress.namespaces import enter_empty_namespaces
from freehold.governance.egress.recorder import Recorder


def main() -> None:
    """See the module."""
    record, *command = sys.argv[1:]
    recorder = Recorder(Path(record), None, watch=True)
    enter_empty_namespaces()
    forbid_new_privileges()
    listener = install(watch_filter(), listener=True)
    assert listener is not None
    recorder.hand_over(listener)
    recorder.go_live()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
