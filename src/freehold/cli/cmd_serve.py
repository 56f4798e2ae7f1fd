"""`freehold serve`: take the port, then load the model, then answer until a signal comes."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from freehold.cli.ledger import LedgerOptions, open_recorder
from freehold.cli.model import engine_options, model_argument, opened
from freehold.cli.options import build, dataclass_options
from freehold.cli.sealing import Sealing, chosen_sealing, seal_options
from freehold.core.errors import ConfigError, FreeholdError
from freehold.server.operation.options import ServerOptions

if TYPE_CHECKING:
    import socket
    import ssl

    from freehold.cli.ledger import LedgerRecorder
    from freehold.governance.egress.seal import Seal
    from freehold.loading.pull import Progress as Report
    from freehold.server.operation.keys import Keys
    from freehold.server.operation.limits import Limits

# Shown in the help only, which must not import the server; a test holds them equal to the server's own.
SHOWN_HOST = "127.0.0.1"
SHOWN_PORT = "8000"
KEY_VARIABLE = "FREEHOLD_API_KEY"


@click.command()
@model_argument
@click.option("--host", help="Address to listen on; other than loopback needs a key.", show_default=SHOWN_HOST)
@click.option("--port", type=click.INT, help="Port to listen on; 0: any free one.", show_default=SHOWN_PORT)
@click.option(
    "--api-key",
    envvar=KEY_VARIABLE,
    help="The token that clients must send. Other users can see options; prefer the variable.",
    show_envvar=True,
)
@click.option("--alias", "aliases", multiple=True, help="A further name for the model. May be given several times.")
@click.option(
    "--no-store",
    is_flag=True,
    help="Keep no blocks on the disk; without it, and without --store-dir, they are kept in FREEHOLD_HOME/blocks.",
)
@click.option(
    "--keys-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="API keys, made by `freehold keys`; by default `keys.json` in FREEHOLD_HOME, if it exists.",
)
@seal_options
@dataclass_options(ServerOptions, into="server")
@dataclass_options(LedgerOptions, into="records")
@engine_options
def serve(
    model: str | None,
    host: str | None,
    port: int | None,
    api_key: str | None,
    aliases: tuple[str, ...],
    no_store: bool,
    keys_file: Path | None,
    seal: bool,
    seal_without: tuple[str, ...],
    seal_record: Path | None,
    seal_mounts: tuple[str, ...],
    server: dict[str, Any],
    records: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Serve a model over the OpenAI-compatible API.

    MODEL is a pulled name, a directory or a .gguf file; without it, the default model is taken, and
    fetched if it is missing. The first Ctrl-C lets running answers end, the second one cuts them off.
    With --seal nothing is fetched, and nothing but answers to clients can leave the process.
    """
    options = build(ServerOptions, server)
    voice = Voice(options)
    sealing = chosen_sealing(seal, seal_without, seal_record, seal_mounts)
    serving = _Serving(
        model,
        host,
        port,
        api_key,
        aliases,
        no_store,
        keys_file,
        options,
        build(LedgerOptions, records),
        engine,
        sealing,
        voice,
    )
    try:
        if not serving.run():
            raise FreeholdError("running requests were cut off by a second signal")
    except click.exceptions.ClickException:
        raise
    except Exception as error:
        voice.failed(error)


@dataclass(frozen=True, slots=True)
class _Serving:
    """What `freehold serve` was asked for."""

    model: str | None
    host: str | None
    port: int | None
    api_key: str | None
    aliases: tuple[str, ...]
    no_store: bool
    keys_file: Path | None
    options: ServerOptions
    records: LedgerOptions
    engine: dict[str, Any]
    sealing: Sealing | None
    voice: Voice

    def run(self) -> bool:
        """Serve; whether running requests were given their time."""
        from freehold.server.operation import port as door

        host = door.DEFAULT_HOST if self.host is None else self.host
        port = door.DEFAULT_PORT if self.port is None else self.port
        # Before anything slow: a taken port, a missing key or an expired certificate should not cost the time of
        # loading a model.
        keys = usable_keys(self.keys_file, self.api_key)
        door.require_key(host, None, keys)
        door.allow_open_files(self.options.max_connections)
        o = self.options
        tls = None if o.tls_cert is None or o.tls_key is None else tls_context(o)
        with door.reserve_port(host, port) as listener:
            sealed = None if self.sealing is None else self._seal(self.sealing, listener)
            # After the seal, which wants a process of one thread, and closed after everything that may be recorded.
            with open_recorder(self.records, self.voice.say) as recorder:
                return self._answer(listener, sealed, recorder, keys, tls)

    def _seal(self, sealing: Sealing, listener: socket.socket) -> Seal:
        if self.records.checkpoint_command is not None:
            raise ConfigError(
                "checkpoint_command would be started inside of the seal, from which nothing can be sent; give "
                "--checkpoint-dir instead, and let another program take checkpoints from there"
            )
        store = store_of(self.engine, no_store=self.no_store)
        places = [place for place in (store, self.records.ledger, self.records.checkpoint_dir) if place is not None]
        o, r = self.options, self.records
        named = [path for path in (self.keys_file, o.tls_cert, o.tls_key, r.ledger_key, r.prices) if path is not None]
        if r.ledger is not None:
            from freehold.cli.ledger import ledger_key, ledger_key_file

            ledger_key(r.ledger_key)  # made where there is none: from inside it could not be
            named.append(ledger_key_file(r.ledger_key))
        sealed = sealing.stand(listener, self.model, places, named, o.log_format)
        self.voice.say(sealed.sentence)
        return sealed

    def _answer(
        self,
        listener: socket.socket,
        sealed: Seal | None,
        recorder: LedgerRecorder | None,
        keys: Keys,
        tls: ssl.SSLContext | None,
    ) -> bool:
        """Load the model and answer. All that a seal must come before is imported here."""
        from freehold.cli.served_model import ServedModel
        from freehold.server import run

        voice = self.voice
        choose_store(self.engine, no_store=self.no_store, say=voice.say)
        with (
            opened(self.model, self.engine, shown=voice.progress) as llm,
            open_limits(keys, voice.say) as limits,
        ):
            voice.say(llm.description)
            if llm.sampling_defaults:
                chosen = ", ".join(f"{name} {value}" for name, value in llm.sampling_defaults.items())
                voice.say(f"sampling, where a request does not say: {chosen}")
            with ServedModel(llm) as backend:

                def ready(url: str) -> None:
                    voice.announce(url + (self.options.root_path or ""), llm.name, with_key=keys.asks)
                    backend.warm()

                return run.serve(
                    backend,
                    listener=listener,
                    keys=keys,
                    limits=limits,
                    recorder=recorder,
                    tls=tls,
                    aliases=self.aliases,
                    options=self.options,
                    on_ready=ready,
                    seal=None if sealed is None else sealed.state,
                )


class Voice:
    """What is said about a server beside its log: to people as it is, or as lines of the log if that is JSON, so that
    every line is."""

    def __init__(self, options: ServerOptions) -> None:
        self._logger: logging.Logger | None = None
        if options.log_format == "json":
            from freehold.server.operation.logs import set_up_logs

            set_up_logs(options.log_format, options.log_level, access_log=options.access_log)
            self._logger = logging.getLogger("freehold.server")

    def say(self, text: str) -> None:
        """A line for whoever operates the server."""
        if self._logger is None:
            click.echo(text, err=True)
        else:
            self._logger.info(text)

    def progress(self, name: str) -> AbstractContextManager[Report]:
        """The progress of fetching a model; in a log one line for each stage."""
        if self._logger is None:
            from freehold.cli.fetching import shown_progress

            return shown_progress(name)
        told: set[str] = set()

        def report(what: str, done: int, total: int | None) -> None:
            if what not in told:
                told.add(what)
                self.say(f"{what} {name}")

        return nullcontext(report)

    def announce(self, url: str, model_name: str, *, with_key: bool) -> None:
        """The address and, to people, a request to paste into another terminal. The key itself is not told."""
        if self._logger is not None:
            fields = {"message": "ready", "model": model_name, "url": f"{url}/v1"}
            self._logger.info("ready", extra={"fields": fields})
            return
        body = json.dumps({"model": model_name, "messages": [{"role": "user", "content": "Hello!"}]})
        # In double quotes, so that the shell fills in the variable.
        key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if with_key else ""
        click.echo(f"Serving {model_name} on {url}/v1  (Ctrl-C ends)")
        request = f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}"
        click.echo(f"Try: {request}")

    def failed(self, error: Exception) -> NoReturn:
        """The process ends with status 1, and a log in JSON says why; elsewhere the error goes on its way."""
        if self._logger is None:
            raise error
        if isinstance(error, FreeholdError):
            self._logger.error(str(error))
        else:
            self._logger.critical("the server failed", exc_info=error)
        raise click.exceptions.Exit(1) from error


def usable_keys(path: Path | None, api_key: str | None) -> Keys:
    """The key file's keys and the one given. Raises ConfigError for a file that was named and is not there."""
    from freehold.loading.home import keys_file
    from freehold.server.operation.keys import Keys

    if path is not None and not path.exists():
        raise ConfigError(f"there is no key file {path}; make it with: freehold keys add NAME --file {path}")
    return Keys(keys_file() if path is None else path, api_key=api_key)


def tls_context(options: ServerOptions) -> ssl.SSLContext:
    """Read and check the certificate and its key."""
    from freehold.server.operation import tls

    assert options.tls_cert is not None
    assert options.tls_key is not None
    return tls.tls_context(options.tls_cert, options.tls_key)


@contextmanager
def open_limits(keys: Keys, say: Callable[[str], None]) -> Iterator[Limits]:
    """What keys have used, kept in FREEHOLD_HOME over restarts. Where it cannot be kept, a server without keys says
    so and goes on; with keys it raises ConfigError, since budgets would begin anew at every restart."""
    from freehold.core.errors import ConfigError
    from freehold.loading.home import budgets_file
    from freehold.server.operation.budget_book import BudgetBook
    from freehold.server.operation.limits import Limits

    try:
        book = BudgetBook(budgets_file())
    except ConfigError as error:
        if keys.asks:
            raise
        say(f"Used tokens are not kept on the disk: {error}")
        book = BudgetBook(None)
    limits = Limits(book)
    try:
        yield limits
    finally:
        limits.close()


def store_of(engine: dict[str, Any], *, no_store: bool) -> Path | None:
    """Where blocks will be kept, known before the cache is imported; None: nowhere."""
    from freehold.loading.home import blocks_dir

    if engine["store_dir"] is not None:
        return Path(engine["store_dir"])
    return None if no_store or engine["impl"] == "reference" else blocks_dir()


def choose_store(engine: dict[str, Any], *, no_store: bool, say: Callable[[str], None]) -> None:
    """Fill in the usual place of the block store where none is named. If another server has it, this one keeps no
    blocks and says so: two servers are more useful than one."""
    if no_store and engine["store_dir"] is not None:
        raise click.UsageError(f"--no-store and --store-dir {engine['store_dir']} exclude each other")
    if no_store or engine["store_dir"] is not None or engine["impl"] == "reference":
        return

    from freehold.cache import StoreLock
    from freehold.core.errors import StoreLockedError
    from freehold.loading.home import blocks_dir

    try:
        StoreLock(blocks_dir()).close()
    except StoreLockedError as error:
        say(f"Blocks are not kept on the disk: {error}")
        return
    except OSError:
        pass  # the store itself says what is wrong with the directory, and serves without it
    engine["store_dir"] = str(blocks_dir())
