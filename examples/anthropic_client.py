"""Ask through Anthropic's client: python examples/anthropic_client.py [URL], the URL without /v1."""

from __future__ import annotations

import os
import sys

from anthropic import Anthropic

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = Anthropic(base_url=url, api_key=os.environ.get("ANTHROPIC_API_KEY", "none needed"))
model = client.models.list().data[0].id

messages: list = [{"role": "user", "content": "Name three colours."}]
counted = client.messages.count_tokens(model=model, messages=messages).input_tokens
print(f"[{counted} tokens]")
with client.messages.stream(model=model, messages=messages, max_tokens=60) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()
