"""Ask through the Responses API and go on with the conversation: python examples/responses_client.py [BASE_URL]

The server stores nothing, so the items of every answer are sent back; its cache finds them again.
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI

base_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "none needed"))
model = client.models.list().data[0].id

items: list = []
for question in ("Name a river.", "Name another one."):
    items.append({"role": "user", "content": question})
    stream = client.responses.create(model=model, input=items, max_output_tokens=60, store=False, stream=True)
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
        elif event.type in ("response.completed", "response.incomplete"):  # incomplete: cut off after 60 tokens
            response = event.response
    items += [item.model_dump(exclude_none=True) for item in response.output]
    usage = response.usage
    known = usage.input_tokens_details.cached_tokens
    print(f"\n[{usage.input_tokens} tokens, {known} of them known]")
