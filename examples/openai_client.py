"""Ask a running server through the openai package: `freehold serve`, then `python examples/openai_client.py`.

The address may be given as an argument, the key as OPENAI_API_KEY if the server was started with one.
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI

base_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "none needed"))
model = client.models.list().data[0].id

answer = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Name three colours."}],
    max_tokens=40,
    temperature=0,
    stream=True,
)
for chunk in answer:
    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
print()
