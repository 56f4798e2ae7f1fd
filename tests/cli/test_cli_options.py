"""Options are the fields of a dataclass: same names, same defaults, same words, same limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner, Result

from freehold.cli.main import main
from freehold.cli.model import engine_options
from freehold.cli.options import MODELS_OWN, build, dataclass_options, field_help
from freehold.core.config import EngineConfig
from freehold.core.errors import ArgumentError
from freehold.core.sampling import SamplingParams
from freehold.model.sampling_defaults import IN_GENERATION_CONFIG


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a thing.

    width, height: sizes of it, in
        metres; None: unknown. colour: what it looks like; red: is not a field.
    quiet: say nothing.
    """

    width: int = 3
    height: float | None = None
    colour: Literal["red", "blue"] = "blue"
    quiet: bool = False
    careful: bool = True
    folder: Path | None = None
    words: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ArgumentError(f"width is {self.width}; it must be at least 1")


def run(*arguments: str) -> tuple[Result, dict[str, Any]]:
    """Call a command that has the options of Settings; return what click did and what the command got."""
    got: dict[str, Any] = {}

    @click.command()
    @dataclass_options(Settings, into="settings")
    def command(settings: dict[str, Any]) -> None:
        got.update(settings)
        build(Settings, settings)

    return CliRunner().invoke(command, list(arguments)), got


def test_defaults_are_those_of_the_dataclass() -> None:
    result, got = run()
    assert result.exit_code == 0, result.output
    assert build(Settings, got) == Settings()


def test_every_kind_of_field_can_be_given() -> None:
    arguments = "--width 7 --height 1.5 --colour red --quiet --no-careful --folder here --words a --words b"
    _, got = run(*arguments.split(), "--numbers", "4", "--bias", "5=-2.5", "--bias", "6=1")
    assert build(Settings, got) == Settings(
        7, 1.5, "red", True, False, Path("here"), ("a", "b"), (4,), {5: -2.5, 6: 1.0}
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--widht", "7"], "No such option"),
        (["--width", "wide"], "'wide' is not a valid integer"),
        (["--colour", "green"], "'green' is not one of 'red', 'blue'"),
        (["--bias", "5"], "'5' is not TOKEN_ID=BIAS"),
        (["--bias", "x=1"], "'x=1' is not TOKEN_ID=BIAS"),
        (["--width", "0"], "width is 0; it must be at least 1"),
    ],
)
def test_what_does_not_fit_is_wrong_usage(arguments: list[str], said: str) -> None:
    result, _ = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_help_comes_from_the_docstring() -> None:
    assert field_help(Settings) == {
        "width": "Sizes of it, in metres; left out: unknown.",
        "height": "Sizes of it, in metres; left out: unknown.",
        "colour": "What it looks like; red: is not a field.",
        "quiet": "Say nothing.",
    }


def test_help_shows_text_and_default() -> None:
    text = " ".join(run("--help")[0].output.split())
    assert "in metres; left out: unknown. [default: 3]" in text
    assert "Say nothing." in text


def test_a_field_of_an_unknown_kind_is_our_own_mistake() -> None:
    @dataclass
    class Odd:
        thing: complex = 0j

    with pytest.raises(KeyError):
        dataclass_options(Odd, into="odd")(lambda odd: None)


def test_every_sampling_field_has_help() -> None:
    assert set(field_help(SamplingParams)) == {f.name for f in fields(SamplingParams)}


def test_every_engine_option_has_help() -> None:
    @click.command()
    @engine_options
    def command(engine: dict[str, Any]) -> None: ...

    assert [param.name for param in command.params if isinstance(param, click.Option) and not param.help] == []
    assert {param.name for param in command.params} == {f.name for f in fields(EngineConfig)} - {"default_block_tokens"}


def test_help_says_which_defaults_are_the_models_own() -> None:
    assert frozenset(IN_GENERATION_CONFIG) == MODELS_OWN
    shown = CliRunner().invoke(main, ["generate", "--help"], terminal_width=200).output
    assert "[default: (the model's own, else 1.0)]" in shown
