"""A tool loop over chat completions: the model asks for files, this program reads them, until there is an answer.

    python examples/chat_with_tools.py "How many lines has README.md?" [BASE_URL]

Needs a model that can call tools. Each line about a turn says how much of the prompt the server still knew.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from openai import OpenAI

question = sys.argv[1] if len(sys.argv) > 1 else "How many lines has README.md?"
base_url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "none needed"))
model = client.models.list().data[0].id

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "read_file",
            "description": "The text of a file below the current directory.",
            "parameters": {
                "type": "object",
                "properties": {"path": {"type": "string"}},
                "required": ["path"],
            },
        },
    }
]


def read_file(path: str) -> str:
    """The start of a file; what went wrong is told to the model."""
    here = Path.cwd().resolve()
    wanted = (here / path).resolve()
    if not wanted.is_relative_to(here) or not wanted.is_file():
        return f"error: there is no file {path} here"
    return wanted.read_text("utf-8", errors="replace")[:20_000]


messages: list = [{"role": "user", "content": question}]
while True:
    answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS)
    message, usage = answer.choices[0].message, answer.usage
    print(f"[{usage.prompt_tokens} tokens, {usage.prompt_tokens_details.cached_tokens} of them known]", file=sys.stderr)
    messages.append(message.model_dump(exclude_none=True))
    for call in message.tool_calls or []:
        arguments = json.loads(call.function.arguments)
        print(f"[{call.function.name} {arguments}]", file=sys.stderr)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": read_file(**arguments)})
    if not message.tool_calls:
        break
print(message.content)
