"""Libraries above the official clients: LiteLLM, LangChain and llm, each through a session with a tool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.scripted_answers import ScriptedAnswer, ScriptedTalk, call

# What these libraries warn of concerns their own makers.
pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = ("litellm-chat", "litellm-messages", "litellm-responses", "chat", "responses", "messages", "llm")
ANSWERS = [
    ScriptedAnswer("I ask the map.", "It is on the map.", [call("height", place="tower", floors=3)]),
    ScriptedAnswer("It is 41 m high.", "So it is."),
]
PARAMETERS = {"type": "object", "properties": {"place": {"type": "string"}, "floors": {"type": "integer"}}}
TOOL: Any = {"type": "function", "function": {"name": "height", "description": "In metres.", "parameters": PARAMETERS}}
ARGUMENTS = {"place": "tower", "floors": 3}


def question(name: str) -> str:
    """Every test has a conversation of its own, so that what it finds in the cache is its own."""
    return f"How high is the tower of {name}?"


SCRIPT = [ScriptedTalk(question(name), ANSWERS) for name in NAMES]


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches prices when it is imported
    return pytest.importorskip("litellm", reason="litellm is not installed: pip install 'freehold[clients]'")


@pytest.mark.parametrize("api", ["chat", "messages"])
def test_litellm(litellm: Any, served: Any, api: str) -> None:
    asked: dict[str, Any] = {
        "model": f"openai/{served.model}" if api == "chat" else f"anthropic/{served.model}",
        "api_base": served.openai if api == "chat" else served.url,
        "api_key": "none",
        "tools": [TOOL],
        "max_tokens": 500,
    }
    messages: list[Any] = [{"role": "user", "content": question(f"litellm-{api}")}]
    first = litellm.completion(messages=messages, **asked).choices[0].message
    (made,) = first.tool_calls
    assert (made.function.name, json.loads(made.function.arguments)) == ("height", ARGUMENTS)
    messages += [first.model_dump(), {"role": "tool", "tool_call_id": made.id, "content": "41"}]
    second = litellm.completion(messages=messages, stream=True, **asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in second).strip() == "It is 41 m high."
    served.check_prefixes(question(f"litellm-{api}"))


def test_litellm_responses(litellm: Any, served: Any) -> None:
    tool = {"type": "function", "name": "height", "parameters": PARAMETERS}
    answer = litellm.responses(
        model=f"openai/{served.model}",
        input=question("litellm-responses"),
        tools=[tool],
        api_base=served.openai,
        api_key="none",
    )
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_langchain(served: Any, api: str) -> None:
    why = "it is not installed: pip install 'freehold[clients]'"
    messages = pytest.importorskip("langchain_core.messages", reason=why)
    if api == "messages":
        made_by = pytest.importorskip("langchain_anthropic", reason=why).ChatAnthropic
        model = made_by(model=served.model, base_url=served.url, api_key="none", max_retries=0, max_tokens=500)
    else:
        made_by = pytest.importorskip("langchain_openai", reason=why).ChatOpenAI
        model = made_by(
            model=served.model,
            base_url=served.openai,
            api_key="none",
            max_retries=0,
            use_responses_api=api == "responses",
        )
    model = model.bind_tools([TOOL])
    history: list[Any] = [messages.HumanMessage(question(api))]
    first = model.invoke(history)
    (made,) = first.tool_calls
    assert (made["name"], made["args"]) == ("height", ARGUMENTS)
    history += [first, messages.ToolMessage("41", tool_call_id=made["id"])]
    chunks = list(model.stream(history))
    assert "".join(chunk.text for chunk in chunks).strip() == "It is 41 m high."
    served.check_prefixes(question(api))


LLM_TOOL = """
def height(place: str, floors: int) -> str:
    "In metres."
    return "41"
"""


def test_llm(served: Any, tmp_path: Path) -> None:
    pytest.importorskip("llm", reason="llm is not installed: pip install 'freehold[clients]'")
    config = (
        f"- model_id: freehold\n  model_name: {served.model}\n  api_base: {served.openai}\n"
        "  supports_tools: true\n  can_stream: true\n"
    )
    (tmp_path / "extra-openai-models.yaml").write_text(config)
    (tmp_path / "keys.json").write_text('{"openai": "none"}')
    command = [sys.executable, "-m", "llm", "-m", "freehold", "--functions", LLM_TOOL, question("llm")]
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "It is 41 m high." in done.stdout
    served.check_prefixes(question("llm"))
