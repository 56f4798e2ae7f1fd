"""No prefix is lost over many turns with tools, through each of the three APIs, with the official clients.

Every turn sends the whole history back, as clients do: JSON spaced anew, members in another order, reasoning left out
where the API allows it, streamed and whole answers in turns, and the server started anew in the middle.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from support.scripted_answers import ScriptedAnswer, ScriptedTalk, call

TURNS, SHORT = 50, 8
MARKER = "Measure the fifty rooms."
SCHEMA = {
    "type": "object",
    "properties": {"room": {"type": "integer"}, "depth": {"type": "number"}, "tags": {"type": "array", "items": {}}},
}


def script(turns: int) -> list[ScriptedTalk]:
    """Reasoning, a remark in every third turn, one or two calls; at last a text."""
    answers = []
    for turn in range(turns):
        calls = [call("measure", room=turn, depth=1.0 + turn / 4, tags=["ä", "b c"])]
        if turn % 4 == 3:
            calls.append(call("measure", room=1000 + turn, depth=0.5, tags=[]))
        text = f"Room {turn} is next." if turn % 3 == 2 else ""
        answers.append(ScriptedAnswer(text, f"Thought {turn}: one more.", calls))
    return [ScriptedTalk(MARKER, [*answers, ScriptedAnswer("All measured.", "Done.")])]


def result_of(name: str, arguments: dict[str, Any]) -> str:
    """What the tool gives."""
    assert (name, set(arguments) <= set(SCHEMA["properties"])) == ("measure", True)
    return f"room {arguments['room']}: {arguments['depth'] * 2} m\n"


@dataclass(frozen=True)
class Turn:
    """What the client was told of a turn."""

    prompt: int
    cached: int
    completion: int
    text: str
    num_calls: int


def respaced(arguments: str) -> str:
    """The same JSON as another library writes it."""
    return json.dumps(dict(reversed(json.loads(arguments).items())), indent=3, ensure_ascii=True)


class ChatTalk:
    """Chat completions; reasoning is dropped, as the official client does not know it."""

    def __init__(self, url: str, model: str) -> None:
        self.url, self.model = url, model
        self.history: list[Any] = [{"role": "user", "content": MARKER}]

    def turn(self, number: int) -> Turn:
        """Asks, and takes the answer and the tools' results into the history."""
        tools: list[Any] = [{"type": "function", "function": {"name": "measure", "parameters": SCHEMA}}]
        asked: dict[str, Any] = {"model": self.model, "messages": self.history, "tools": tools}
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0) as client:
            if number % 2:
                with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
                    answer = stream.get_final_completion()
            else:
                answer = client.chat.completions.create(**asked)
        message, usage = answer.choices[0].message, answer.usage
        calls = message.tool_calls or []
        self.history.append(
            {
                "role": "assistant",
                "content": message.content,
                "tool_calls": [
                    {
                        "id": made.id,
                        "type": "function",
                        "function": {"name": made.function.name, "arguments": respaced(made.function.arguments)},
                    }
                    for made in calls
                ],
            }
        )
        for made in calls:
            text = result_of(made.function.name, json.loads(made.function.arguments))
            self.history.append({"role": "tool", "tool_call_id": made.id, "content": text})
        cached = usage.prompt_tokens_details.cached_tokens
        return Turn(usage.prompt_tokens, cached, usage.completion_tokens, message.content or "", len(calls))


class ResponsesTalk:
    """The Responses API; reasoning items come back in every second turn only."""

    def __init__(self, url: str, model: str) -> None:
        self.url, self.model = url, model
        self.history: list[Any] = [{"role": "user", "content": MARKER}]

    def turn(self, number: int) -> Turn:
        """See ChatTalk."""
        tools: list[Any] = [{"type": "function", "name": "measure", "parameters": SCHEMA, "strict": False}]
        asked: dict[str, Any] = {"model": self.model, "input": self.history, "tools": tools, "store": False}
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0) as client:
            if number % 2:
                with client.responses.stream(**asked) as stream:
                    answer = stream.get_final_response()
            else:
                answer = client.responses.create(**asked)
        calls = [item for item in answer.output if item.type == "function_call"]
        for item in answer.output:
            kept = item.model_dump(exclude_none=True, exclude={"parsed_arguments"})
            if item.type == "function_call":
                kept = {**kept, "arguments": respaced(item.arguments)}
            if item.type == "message":
                kept = {"role": "assistant", "content": answer.output_text}
            if item.type != "reasoning" or number % 2:
                self.history.append(kept)
        for made in calls:
            text = result_of(made.name, json.loads(made.arguments))
            self.history.append({"type": "function_call_output", "call_id": made.call_id, "output": text})
        usage = answer.usage
        cached = usage.input_tokens_details.cached_tokens
        return Turn(usage.input_tokens, cached, usage.output_tokens, answer.output_text, len(calls))


class MessagesTalk:
    """The Messages API; thinking blocks come back in every second turn only."""

    def __init__(self, url: str, model: str) -> None:
        self.url, self.model = url, model
        self.history: list[Any] = [{"role": "user", "content": MARKER}]

    def turn(self, number: int) -> Turn:
        """See ChatTalk."""
        tools: list[Any] = [{"name": "measure", "input_schema": SCHEMA}]
        asked: dict[str, Any] = {"model": self.model, "messages": self.history, "tools": tools, "max_tokens": 4000}
        with anthropic.Anthropic(base_url=self.url, api_key="none", max_retries=0) as client:
            if number % 2:
                with client.messages.stream(**asked) as stream:
                    answer = stream.get_final_message()
            else:
                answer = client.messages.create(**asked)
        blocks = []
        for block in answer.content:
            kept = block.model_dump(exclude_none=True, exclude={"parsed_output"})
            if block.type == "tool_use":
                kept["input"] = dict(reversed(block.input.items()))
            if block.type != "thinking" or number % 2:
                blocks.append(kept)
        self.history.append({"role": "assistant", "content": blocks})
        calls = [block for block in answer.content if block.type == "tool_use"]
        results = [
            {"type": "tool_result", "tool_use_id": made.id, "content": result_of(made.name, made.input)}
            for made in calls
        ]
        if results:
            self.history.append({"role": "user", "content": results})
        usage = answer.usage
        cached = usage.cache_read_input_tokens
        text = "".join(block.text for block in answer.content if block.type == "text")
        return Turn(usage.input_tokens + cached, cached, usage.output_tokens, text, len(calls))


class Proof:
    """Checks every turn of a talk against what was computed before."""

    def __init__(self, talk: Any, block_tokens: int) -> None:
        self.talk, self.block_tokens = talk, block_tokens
        self.known = 0  # tokens of the conversation that were computed: all but the last one sampled

    def run(self, served: Any, turns: range) -> list[Turn]:
        """One server's turns. The disk keeps whole blocks; RAM the open one as well."""
        self.talk.url = served.url
        self.known -= self.known % self.block_tokens
        return [self._turn(served, number) for number in turns]

    def _turn(self, served: Any, number: int) -> Turn:
        before = served.tokens_computed()
        turn: Turn = self.talk.turn(number)
        assert turn.cached == self.known, f"turn {number}: {turn}; {self.known} tokens were computed before it"
        # The prompt from there on, and each token of the answer but the last.
        assert served.tokens_computed() - before == turn.prompt - self.known + turn.completion - 1
        self.known = turn.prompt + turn.completion - 1
        return turn


TALKS: dict[str, Callable[[str, str], Any]] = {
    "chat": ChatTalk,
    "responses": ResponsesTalk,
    "messages": MessagesTalk,
}


def prove(serving: Any, store: Path, api: str, turns: int) -> None:
    """A whole conversation, with a restart after half of it."""
    talks, stored = script(turns), ("--store-dir", str(store))
    with serving(talks, *stored) as served:
        proof = Proof(TALKS[api](served.url, served.model), served.block_tokens)
        first = proof.run(served, range(turns // 2))
    with serving(talks, *stored) as served:
        rest = proof.run(served, range(turns // 2, turns + 1))
    assert [turn.num_calls for turn in (*first, *rest)] == [2 if n % 4 == 3 else 1 for n in range(turns)] + [0]
    assert rest[-1].text.strip() == "All measured."


@pytest.mark.parametrize("api", TALKS)
def test_no_prefix_is_lost(serving: Any, tmp_path: Path, api: str) -> None:
    prove(serving, tmp_path / "store", api, SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("api", TALKS)
def test_no_prefix_is_lost_over_fifty_turns(serving: Any, tmp_path: Path, api: str) -> None:
    prove(serving, tmp_path / "store", api, TURNS)
