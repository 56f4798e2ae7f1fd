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
            "--seal-with-mount",
            "seal_mounts",
            multiple=True,
            metavar="PATH",
            help="Go on although a file system of another program or machine is mounted there, which is told every "
            "path that is read. May be given several times.",
        ),
        click.option(
            "--seal",
            is_flag=True,
            help="Let nothing leave this process but answers to its clients; refuse to start where that fails.",
        ),
    ):
        command = option(command)
    return command


def chosen_sealing(
    seal: bool, without: tuple[str, ...], record: Path | None, mounts: tuple[str, ...]
) -> Sealing | None:
    """What the options ask for. Raises UsageError for options of a seal without a seal."""
    if seal:
        return Sealing(without, record, mounts)
    if without or mounts or record is not None:
        raise click.UsageError("--seal-without, --seal-with-mount and --seal-record belong to --seal")
    return None


@dataclass(frozen=True, slots=True)
class Sealing:
    """How a server is to be sealed. without: layers that may be missing. record: a file; None: the usual one.

    mounts: where file systems of others may be mounted.
    """

    without: tuple[str, ...]
    record: Path | None
    mounts: tuple[str, ...] = ()

    def stand(
        self,
        listener: socket.socket,
        model: str | None,
        places: Sequence[Path],
        guarded: Sequence[Path],
        log_format: str,
    ) -> Seal:
        """Seal this process. Everything that is needed from outside is looked at before. places: directories that are
        written to, beside those in FREEHOLD_HOME. guarded: files that the sealed process must not write, such as keys.

        Raises GovernanceError where it cannot be sealed, and ModelNotFoundError for a model that is not here: a sealed
        server fetches nothing.
        """
        from freehold.governance.egress.recorder import write_json_to_stderr, write_to_stderr
        from freehold.governance.egress.seal import seal
        from freehold.loading.home import budgets_file, experts_dir, freehold_home, keys_file
        from freehold.loading.registry import DEFAULT_MODEL, resolve

        early = [name for name in _UNTRUSTED if name in sys.modules]
        if early:
            raise GovernanceError(f"{', '.join(early)} was imported before the seal; run --seal in a fresh process.")
        resolve(DEFAULT_MODEL if model is None else model)
        home = freehold_home()
        temporary = home / "tmp"
        # Not the data directory itself: keys and models lie there, which nobody changes from inside.
        writable = [temporary, budgets_file().parent, experts_dir(), *places]
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in writable:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_writable([home / "audit-key.pem", home / "disclosure-key.pem", keys_file(), *guarded], writable)
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
        return seal([listener], writable=writable, record=record, log=log, tolerated=self.without, mounts=self.mounts)


def _refuse_writable(files: Sequence[Path], writable: Sequence[Path]) -> None:
    """Raises GovernanceError where one of the files could be written or replaced from inside of the seal."""
    for file in files:
        for directory in writable:
            if any(path.is_relative_to(directory.resolve()) for path in (file.absolute(), file.resolve())):
                raise GovernanceError(
                    f"{file} lies in {directory}, which the sealed process may write: it could replace the file. Keep "
                    "keys apart from what is written."
                )
