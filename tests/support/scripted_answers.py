"""What a scripted model says: answers by conversation and turn, spelled as a model may spell them.

A spelling is not the template's own: white space stands where it need not, and tokens end in the middle of words. So
a prompt that is rendered anew from an answer has other tokens than the answer had, and only a replay finds the blocks
again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from freehold.model.m3_tokens import (
    END_OF_TURN,
    ROLE_OPENER,
    THINK_CLOSE,
    THINK_OPEN,
    TOOL_NAMESPACE,
)
from freehold.model.tokenizer import Tokenizer

_N = TOOL_NAMESPACE
_OPENED_ANSWER = f"{ROLE_OPENER}ai\n"
_CUT = 7  # characters
_DECLARED = re.compile(r'<tool>\{.*?"name": "([^"]+)"')


@dataclass(frozen=True, slots=True)
class ScriptedCall:
    """One call of a tool."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ScriptedAnswer:
    """One answer. Arguments are texts, numbers, truth values, lists and objects of these."""

    text: str = ""
    reasoning: str = ""
    calls: Sequence[ScriptedCall] = ()


@dataclass(frozen=True, slots=True)
class ScriptedTalk:
    """The answers of every conversation in which `marker` stands, in order: one for each of the model's turns."""

    marker: str
    answers: Sequence[ScriptedAnswer] = field(default_factory=tuple)


ELSE = ScriptedAnswer("Fine.")
"""What is said to all other prompts, such as those in which a client asks for a title. So is it where an answer calls a
tool that the prompt does not declare."""


def call(name: str, **arguments: Any) -> ScriptedCall:
    """A call, shortly written."""
    return ScriptedCall(name, arguments)


def write_script(talks: Sequence[ScriptedTalk], path: Path) -> Path:
    """Writes a script for a process of its own."""
    path.write_text(json.dumps([asdict(talk) for talk in talks]), encoding="utf-8")
    return path


def read_script(path: Path) -> list[ScriptedTalk]:
    """What `write_script` wrote."""
    return [
        ScriptedTalk(
            talk["marker"],
            [
                ScriptedAnswer(a["text"], a["reasoning"], [ScriptedCall(**c) for c in a["calls"]])
                for a in talk["answers"]
            ],
        )
        for talk in json.loads(path.read_text("utf-8"))
    ]


def scripted_answer(script: Sequence[ScriptedTalk], prompt: str) -> tuple[str, int, ScriptedAnswer]:
    """(marker, number of the turn, answer) to a prompt; the marker is empty where ELSE is said."""
    turn = prompt.count(_OPENED_ANSWER) - 1
    declared = set(_DECLARED.findall(prompt))
    for talk in script:
        if talk.marker in prompt and 0 <= turn < len(talk.answers):
            answer = talk.answers[turn]
            if all(made.name in declared for made in answer.calls):
                return talk.marker, turn, answer
    return "", turn, ELSE


def spelled(answer: ScriptedAnswer, *, opened: str = "", strict: bool = False) -> str:
    """An answer as a model writes it, up to the end of its turn.

    opened: the tag of reasoning that the prompt ends with, if it does. strict: as the grammar of a required call allows
    it, without a word before the calls and without white space that need not be.
    """
    gap = "" if strict else "\n"
    text = "" if strict and answer.calls else answer.text
    if opened == THINK_CLOSE:
        thought = ""
    else:
        opening = THINK_OPEN if answer.reasoning and opened != THINK_OPEN else ""
        thought = f"{opening}{answer.reasoning}{THINK_CLOSE}"
    written = thought + (gap if text and answer.reasoning else "") + text
    if answer.calls:
        lines = "".join(f"{_N}{_invoke(made)}{_N}</invoke>\n{gap}" for made in answer.calls)
        written += f"{gap}{_N}<tool_call>\n{gap}{lines}{_N}</tool_call>"
    return written + END_OF_TURN


def _invoke(made: ScriptedCall) -> str:
    return f'<invoke name="{made.name}">' + "".join(_tagged(name, value) for name, value in made.arguments.items())


def _tagged(name: str, value: Any) -> str:
    return f"{_N}<{name}>{_value(value)}{_N}</{name}>"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "".join(_tagged(name, member) for name, member in value.items())
    if isinstance(value, (list, tuple)):
        return "".join(_tagged("item", member) for member in value)
    return json.dumps(value)


def uneven_tokens(text: str, tokenizer: Tokenizer) -> Iterator[int]:
    """Token ids of a text, cut where no encoding of the whole would cut it; special tokens stay whole."""
    special = {tokenizer.decode([i], skip_special=False): i for i in sorted(tokenizer.special_ids)}
    names = "|".join(map(re.escape, sorted(filter(None, special), key=len, reverse=True)))
    for piece in re.split(f"({names})", text):
        if piece in special:
            yield special[piece]
            continue
        for start in range(0, len(piece), _CUT):
            yield from tokenizer.encode(piece[start : start + _CUT])
