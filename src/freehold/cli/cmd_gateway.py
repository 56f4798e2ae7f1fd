"""`freehold gateway`: check everything that decides, then answer until a signal comes."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.cmd_serve import KEY_VARIABLE, SHOWN_HOST, Voice, open_limits, usable_keys
from freehold.cli.ledger import LedgerOptions, open_recorder
from freehold.cli.options import build, dataclass_options
from freehold.cli.policy_files import load_policy, policy_options
from freehold.core.errors import FreeholdError
from freehold.server.operation.options import ServerOptions

if TYPE_CHECKING:
    from freehold.server.gateway.gateway import Setup

# Beside the 8000 of `freehold serve`, which may well stand behind this door.
SHOWN_PORT = "8080"


@click.command()
@policy_options
@click.option(
    "--endpoints", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file of endpoints (TOML)."
)
@click.option("--host", help="Address to listen on; other than loopback needs a key.", show_default=SHOWN_HOST)
@click.option("--port", type=click.INT, help="Port to listen on; 0: any free one.", show_default=SHOWN_PORT)
@click.option(
    "--api-key",
    envvar=KEY_VARIABLE,
    help="The token that clients must send. Other users can see options; prefer the variable.",
    show_envvar=True,
)
@click.option(
    "--keys-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="API keys, made by `freehold keys`; by default `keys.json` in FREEHOLD_HOME, if it exists.",
)
@dataclass_options(ServerOptions, into="server", without=("keepalive_seconds",))
@dataclass_options(LedgerOptions, into="records")
def gateway(
    profile: str | None,
    policy: Path | None,
    classes: Path | None,
    endpoints: Path,
    host: str | None,
    port: int | None,
    api_key: str | None,
    keys_file: Path | None,
    server: dict[str, Any],
    records: dict[str, Any],
) -> None:
    """One door in front of several endpoints, with a policy that decides.

    It speaks OpenAI's and Anthropic's APIs, looks through each request, and sends it to the first endpoint that serves
    its model and that the policy allows. SIGHUP reads policy, classes, endpoints and keys again.
    """
    options = build(ServerOptions, server)
    voice = Voice(options)
    try:
        written = build(LedgerOptions, records)
        _gateway((profile, policy, classes), endpoints, (host, port), (api_key, keys_file), options, written, voice)
    except click.exceptions.ClickException:
        raise
    except Exception as error:
        voice.failed(error)


def _gateway(
    policy: tuple[str | None, Path | None, Path | None],
    endpoints: Path,
    address: tuple[str | None, int | None],
    keys_given: tuple[str | None, Path | None],
    options: ServerOptions,
    records: LedgerOptions,
    voice: Voice,
) -> None:
    from freehold.cli.gateway_ledger import GatewayRecorder
    from freehold.server.gateway.gateway import log_record
    from freehold.server.gateway.run import serve_gateway
    from freehold.server.operation import port as ports

    api_key, keys_file = keys_given
    host = ports.DEFAULT_HOST if address[0] is None else address[0]
    port = int(SHOWN_PORT) if address[1] is None else address[1]
    keys = usable_keys(keys_file, api_key)
    ports.require_key(host, None, keys)
    setup = load_setup(policy, endpoints)
    for entry in setup.endpoints.entries:
        facts = next(iter(entry.resources.values())).facts
        voice.say(f"{entry.name}: {', '.join(entry.models)} ({facts.path}, {entry.state_in_words})")
    voice.say(f"The policy is {setup.rules.digest}, with {len(setup.rules.ids)} clauses.")

    def ready(url: str) -> None:
        voice.say(f"Open on {url}{options.root_path or ''}/v1  (Ctrl-C ends)")

    with (
        ports.reserve_port(host, port) as listener,
        open_recorder(records, voice.say) as ledger,
        open_limits(keys, voice.say) as limits,
    ):
        recorder = None if ledger is None else GatewayRecorder(ledger)
        ended_well = serve_gateway(
            lambda: load_setup(policy, endpoints),
            listener=listener,
            keys=keys,
            limits=limits,
            options=options,
            on_decision=log_record if recorder is None else recorder.take,
            settle=None if recorder is None else recorder.settle,
            recorder=recorder,
            on_ready=ready,
        )
    if not ended_well:
        raise FreeholdError("running requests were cut off by a second signal")


def load_setup(policy: tuple[str | None, Path | None, Path | None], endpoints: Path) -> Setup:
    """Everything that decides, read and checked anew."""
    from freehold.server.gateway.endpoints import read_endpoints
    from freehold.server.gateway.gateway import Setup

    rules, classifier = load_policy(*policy)
    return Setup(rules, classifier, read_endpoints(endpoints, os.environ, datetime.now(timezone.utc).date()))
