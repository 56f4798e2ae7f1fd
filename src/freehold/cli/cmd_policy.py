"""`freehold policy`: what a policy says, before a request is at stake."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from freehold.cli.policy_files import SHOWN_PROFILES, load_policy, policy_options, read_file
from freehold.core.errors import ConfigError, GovernanceError

_PARTS = ("policy", "classes", "cases", "schema", "base")
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


@click.group()
def policy() -> None:
    """Show, test and explain policies of the gateway."""


@policy.command()
@click.argument("profile", type=click.Choice(SHOWN_PROFILES))
@click.option("--part", type=click.Choice(_PARTS), default="policy", show_default=True, help="Which of its files.")
def show(profile: str, part: str) -> None:
    """Print a policy that comes with Freehold, to be read or copied.

    The schema and the base, whose clauses always hold, are the same for every policy.
    """
    from freehold.governance.policy.profiles import profile as shipped
    from freehold.governance.policy.rules import read_part

    if part in ("schema", "base"):
        click.echo(read_part({"schema": "schema.cedarschema", "base": "base.cedar"}[part]), nl=False)
    else:
        click.echo(getattr(shipped(profile), part), nl=False)


@policy.command()
@click.argument("tables", nargs=-1, type=click.Path(path_type=Path, dir_okay=False), metavar="[FILE.toml]...")
@policy_options
@_json_option
def test(
    tables: tuple[Path, ...], profile: str | None, policy: Path | None, classes: Path | None, as_json: bool
) -> None:
    """Try a policy on tables of cases; status 1 if one comes out otherwise than expected.

    Without a table the profile's own is tried; without anything, those of all profiles.
    """
    runs: list[tuple[str, str, str | None]] = [(str(path), read_file(path), profile) for path in tables]
    if not runs:
        if policy is not None and profile is None:
            raise click.UsageError("a policy of your own has no table of cases; give one, or --profile for the shipped")
        runs = [(f"profile {name}", _shipped_cases(name), name) for name in ([profile] if profile else SHOWN_PROFILES)]
    results = [
        {"table": where, **result} for where, text, name in runs for result in _run(where, text, name, policy, classes)
    ]
    wrong = [result for result in results if result["problem"]]
    if as_json:
        click.echo(json.dumps({"cases": results, "wrong": len(wrong)}))
    else:
        for result in results:
            mark = "WRONG" if result["problem"] else "ok   "
            click.echo(f"{mark}  {result['name']}: {result['class']} -> {result['outcome']} by {result['clause']}")
            if result["problem"]:
                click.echo(f"       {result['problem']}")
    if wrong or not results:
        raise GovernanceError(f"{len(wrong)} of {len(results)} cases came out otherwise than expected")
    if not as_json:
        click.echo(f"{len(results)} cases came out as expected.")


def _shipped_cases(name: str) -> str:
    from freehold.governance.policy.profiles import profile as shipped

    return shipped(name).cases


def _run(where: str, text: str, profile: str | None, policy: Path | None, classes: Path | None) -> list[dict[str, str]]:
    from freehold.governance.policy.cases import run_cases

    rules, classifier = load_policy(profile, policy, classes)
    found = run_cases(text, rules, classifier, datetime.now(timezone.utc).date(), where)
    return [
        {"name": r.name, "class": r.data_class, "outcome": r.outcome, "clause": r.clauses[0], "problem": r.problem}
        for r in found
    ]


@policy.command()
@click.argument("body", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--endpoints", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file of endpoints (TOML)."
)
@click.option(
    "--endpoint", help="Ask about this one alone; left out: about those that serve the body's model, in order."
)
@click.option("--api", type=click.Choice(["openai", "anthropic"]), help="The family of API; left out: any that fits.")
@click.option("--client", default="anonymous", show_default=True, help="The name of the client's key.")
@click.option("--declared", help="The class that the client names.")
@policy_options
@_json_option
def explain(
    body: Path,
    endpoints: Path,
    endpoint: str | None,
    api: str | None,
    client: str,
    declared: str | None,
    profile: str | None,
    policy: Path | None,
    classes: Path | None,
    as_json: bool,
) -> None:
    """Say what would become of a request: its class, what was found, and which clause decides.

    BODY is a file with the body of a request, in JSON. Nothing is sent, and nothing of the body is printed.
    """
    from freehold.governance.policy.choice import choose
    from freehold.governance.policy.classes import DataClass
    from freehold.server.gateway.endpoints import read_endpoints

    rules, classifier = load_policy(profile, policy, classes)
    value = _read_body(body)
    known = read_endpoints(endpoints, None, datetime.now(timezone.utc).date())
    said = None if declared is None else DataClass.of(declared, "--declared")
    found = classifier.classify(value, client=client, declared=said)
    entries = [entry for entry in known.entries if _is_asked(entry, endpoint, api, value.get("model"))]
    if not entries:
        raise ConfigError(
            f"none of the endpoints in {endpoints} is {endpoint or 'one for the model ' + repr(value.get('model'))}"
        )
    asked = [entry.resources[api or entry.families[0]] for entry in entries]
    choice = choose(rules, asked, client, found, streamed=value.get("stream") is True)
    report = {
        "class": found.data_class.word,
        "because": list(found.because),
        "findings": dict(found.findings),
        "decisions": [
            {"endpoint": name, "allowed": d.allowed, "clause": d.clause, "clauses": list(d.clauses)}
            for name, d in choice.decisions
        ],
        "endpoint": None if choice.chosen is None else choice.chosen.name,
        "policy": rules.digest,
    }
    click.echo(json.dumps(report) if as_json else _in_words(report))


def _is_asked(entry: Any, endpoint: str | None, api: str | None, model: object) -> bool:
    if api is not None and api not in entry.families:
        return False
    return bool(entry.name == endpoint) if endpoint is not None else model in entry.models


def _read_body(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_file(path))
    except ValueError as error:
        raise ConfigError(f"{path} holds no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object, which the body of a request is")
    if not isinstance(value.get("stream"), bool | None):
        raise ConfigError(f"{path}: stream is neither true nor false; the gateway refuses such a request")
    return value


def _in_words(report: dict[str, Any]) -> str:
    found = ", ".join(f"{name} ({count})" for name, count in report["findings"].items()) or "nothing"
    lines = [f"class     {report['class']}, because of {', '.join(report['because'])}", f"found     {found}"]
    for decision in report["decisions"]:
        verdict = "allowed" if decision["allowed"] else "denied"
        lines.append(f"endpoint  {decision['endpoint']}: {verdict} by {', '.join(decision['clauses'])}")
    lines.append(f"goes to   {report['endpoint'] or 'nowhere'}")
    lines.append(f"policy    {report['policy']}")
    return "\n".join(lines)
