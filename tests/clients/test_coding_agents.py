"""Coding agents work against the server: they run the tools that the model calls, and their prompts are found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.agents import AGENTS
from support.scripted_answers import ScriptedAnswer, ScriptedTalk

MARKER = "Please write down what the cupboard holds."
FAREWELL = "The cupboard holds three jars."


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_uses_its_tools(serving: Any, tmp_path: Path, name: str) -> None:
    agent = AGENTS[name]
    if why := agent.why_not():
        pytest.skip(f"{name}: {why}")
    home, folder = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    folder.mkdir()
    (folder / "cupboard.txt").write_text("jar one, jar two, jar three\n")
    listing = folder / "listing.txt"
    answers = [
        ScriptedAnswer("First I look.", "What is there?", [agent.shell("ls; cat cupboard.txt")]),
        ScriptedAnswer("", "Now I write.", [agent.write(listing, "three jars")]),
        ScriptedAnswer("", "", [agent.shell("cat listing.txt")]),
        ScriptedAnswer(FAREWELL, "Done."),
    ]
    with serving([ScriptedTalk(MARKER, answers)], cache_tokens=1 << 18) as served:
        outcome = agent.run(served, MARKER, home=home, folder=folder)
        entries = served.answered(MARKER)
        told = [{name: entry[name] for name in ("turn", "prompt_tokens", "cached_tokens")} for entry in entries]
        print(told, outcome)
        assert outcome.status == 0, outcome
        assert listing.read_text() == "three jars"
        assert FAREWELL in outcome.output
        assert [entry["turn"] for entry in entries] == [0, 1, 2, 3]
        assert "jar two" in entries[1]["end"]
        served.check_prefixes(MARKER)
