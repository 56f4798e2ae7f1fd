"""`--seal`: the options, and a seal around a server that has taken its port and loaded nothing yet."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.core.errors import GovernanceError

if TYPE_CHECKING:
    import socket

    from freehold.governance.egress.seal import Seal

# Shown in the help only; a test holds them equal to the seal's own.
SHOWN_LAYERS = ("namespace", "landlock", "record")

# What handles a model or a request: none of it may run before the seal stands.
_UNTRUSTED = ("torch", "numpy", "tokenizers", "jinja2", "fastapi", "uvicorn", "freehold.model", "freehold.engine")


def seal_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --seal and what belongs to it."""
    for option in (
        click.option(
            "--seal-record",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Where attempts to get out are written down; left out: FREEHOLD_HOME-seal/attempts.jsonl.",
        ),
        click.option(
            "--seal-without",
            multiple=True,
            type=click.Choice(SHOWN_LAYERS),
            help="Go on although this machine cannot make that layer of the seal. May be given several times.",
        ),
        click.option(
            "--seal",
            is_flag=True,
            help="Let nothing leave this process but answers to its clients; refuse to start where that fails.",
        ),
    ):
        command = option(command)
    return command


def chosen_sealing(seal: bool, without: tuple[str, ...], record: Path | None) -> Sealing | None:
    """What the options ask for. Raises UsageError for options of a seal without a seal."""
    if seal:
        return Sealing(without, record)
    if without or record is not None:
        raise click.UsageError("--seal-without and --seal-record belong to --seal")
    return None


@dataclass(frozen=True, slots=True)
class Sealing:
    """How a server is to be sealed. without: layers that may be missing. record: a file; None: the usual one."""

    without: tuple[str, ...]
    record: Path | None

    def stand(self, listener: socket.socket, model: str | None, places: Sequence[Path], log_format: str) -> Seal:
        """Seal this process. Everything that is needed from outside is looked at before. places: directories that are
        written to, beside FREEHOLD_HOME.

        Raises GovernanceError where it cannot be sealed, and ModelNotFoundError for a model that is not here: a sealed
        server fetches nothing.
        """
        from freehold.governance.egress.recorder import write_json_to_stderr, write_to_stderr
        from freehold.governance.egress.seal import seal
        from freehold.loading.home import freehold_home
        from freehold.loading.registry import DEFAULT_MODEL, resolve

        early = [name for name in _UNTRUSTED if name in sys.modules]
        if early:
            raise GovernanceError(f"{', '.join(early)} was imported before the seal; run --seal in a fresh process.")
        resolve(DEFAULT_MODEL if model is None else model)
        home = freehold_home()
        temporary = home / "tmp"
        writable = [home, temporary, *places]
        for directory in writable:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The machine's own directory for such files is shared with other programs, and stays closed.
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        record = self.record or home.with_name(f"{home.name}-seal") / "attempts.jsonl"
        try:
            record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise GovernanceError(
                f"Attempts cannot be recorded in {record}: {error.strerror}. Name another file: --seal-record FILE"
            ) from error
        log = write_json_to_stderr if log_format == "json" else write_to_stderr
        return seal([listener], writable=writable, record=record, log=log, tolerated=self.without)
