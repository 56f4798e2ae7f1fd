"""Requests in which things are planted, with the class that they therefore have.

The class is known from what was planted, and from nothing else: no detector of ours is asked.
"""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

PUBLIC, GENERAL, PROPRIETARY, REGULATED, SECRET, UNKNOWN = range(6)
WORDS = ("public", "general", "proprietary", "regulated", "secret", "unknown")

CLASSES_TOML = """
[classes]
base = "general"
system-prompt = "proprietary"
source-code = "proprietary"
image = "unknown"
email = "regulated"
[clients.open]
base = "public"
system-prompt = "public"
source-code = "public"
[[marker]]
name = "nightjar"
class = "proprietary"
texts = ["Project Nightjar", "quokka-engine"]
paths = ["src/billing/**", "*.tfstate"]
repositories = ["github.com/acme/core-*"]
[limits]
seconds = 2.0
"""

CRASH_WORD, SLOW_WORD = "detector-crash-here", "detector-sleeps-here"
"""What makes a planted detector raise, and one take longer than the limit."""

FILLER = (
    "Please explain the following in simple words.",
    "What is the difference between a list and a tuple?",
    "Thank you, that helped. One more question about it.",
    "The weather was fine, and everybody went home at 17:30 on 12 May 2024.",
    "Version 3.11.4 was released; see section 4.2 on page 118.",
    "Translate: the early bird catches the worm.",
    "Numbers such as 1234, 5678 and 90 appear in the table with 12 rows.",
)


MARKERS = (
    "Project Nightjar",
    "project  nightjar",
    "PROJECT_NIGHTJAR",
    "the Quokka Engine",
    "quokka-engine v2",
    "/srv/repo/src/billing/invoice/vat.py",
    "src\\billing\\main.c",
    "prod.tfstate",
    "git@github.com:acme/core-api.git",
    "https://github.com/acme/core-web/pull/3",
)


def _luhn(head: str) -> str:
    total = 0
    for position, digit in enumerate(reversed(head)):
        value = int(digit) * (2 if position % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return head + str(-total % 10)


def card(rng: random.Random) -> str:
    """A number that a network could issue."""
    prefix, length = rng.choice([("4", 16), ("51", 16), ("55", 16), ("37", 15), ("34", 15), ("6011", 16), ("2720", 16)])
    return _luhn(prefix + "".join(rng.choice(string.digits) for _ in range(length - len(prefix) - 1)))


def spaced_card(rng: random.Random) -> str:
    """The same, as people write it."""
    number = card(rng)
    sign = rng.choice(["", " ", "-", "\u2011", "\u00a0", "  "])
    cuts = (0, 4, 10, 15) if len(number) == 15 else (0, 4, 8, 12, 16)
    return sign.join(number[start:end] for start, end in pairwise(cuts))


def iban(rng: random.Random) -> str:
    """A German or British account number."""
    if rng.random() < 0.5:
        country, body = "DE", "".join(rng.choice(string.digits) for _ in range(18))
    else:
        country, body = "GB", "NWBK" + "".join(rng.choice(string.digits) for _ in range(14))
    turned = "".join(str(int(c, 36)) for c in body + country + "00")
    whole = f"{country}{98 - int(turned) % 97:02}{body}"
    return " ".join(whole[i : i + 4] for i in range(0, len(whole), 4)) if rng.random() < 0.5 else whole


def token(rng: random.Random) -> str:
    """A key of a known form."""
    head, count = rng.choice([("ghp_", 36), ("sk-ant-api03-", 60), ("xoxb-", 30), ("hf_", 34), ("glpat-", 20)])
    return head + "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(count))


def private_key(rng: random.Random) -> str:
    """A PEM file's head and some of its body."""
    body = base64.b64encode(rng.randbytes(48)).decode()
    kind = rng.choice(["RSA ", "EC ", "OPENSSH ", ""])
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}"


def source(rng: random.Random) -> str:
    """A file of a program."""
    return rng.choice(
        [
            "def total(order):\n    price = order.price\n    return price * order.count\n",
            "import os\nfrom a import b\n\nclass Ledger(b.Book):\n    def read(self):\n        return os.name\n",
            '#include <stdio.h>\nint main(void) {\n  printf("x");\n  return 0;\n}\n',
            "export function f(x) {\n  const y = x;\n  return y;\n}\n",
        ]
    )


def marker(rng: random.Random) -> str:
    """A name or place of one's own, in one of its spellings."""
    return rng.choice(MARKERS)


def wide(text: str) -> str:
    """Digits in full width."""
    return "".join(chr(ord(c) + 0xFEE0) if c in string.digits else c for c in text)


def hidden(text: str) -> str:
    """An invisible character in the middle."""
    return text[: len(text) // 2] + "\u200b" + text[len(text) // 2 :]


def packed(text: str) -> str:
    """In base64."""
    return base64.b64encode(f"as agreed: {text} (see above)".encode()).decode()


PLANTS: dict[str, tuple[int, Callable[[random.Random], str]]] = {
    "card": (REGULATED, spaced_card),
    "iban": (REGULATED, iban),
    "email": (REGULATED, lambda rng: f"{rng.choice(['ann', 'bo.lee'])}@{rng.choice(['acme.io', 'mail.corp.de'])}"),
    "token": (SECRET, token),
    "private key": (SECRET, private_key),
    "source": (PROPRIETARY, source),
    "marker": (PROPRIETARY, marker),
    "crash": (UNKNOWN, lambda rng: CRASH_WORD),
    "slow": (UNKNOWN, lambda rng: SLOW_WORD),
}
DISGUISED = {"card": (wide, hidden, packed), "iban": (hidden, packed), "token": (hidden, packed), "marker": (hidden,)}
SPLIT = ("card", "iban", "token", "private key", "marker")
OPEN_CLIENT_FREE = ("source", "system")
"""What the settings lower for the client "open"."""


@dataclass(frozen=True)
class Planted:
    """path: of the API. headers: beside those of every request. floor: the class that it has, as a number.
    planted: what and where, for messages of tests."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    floor: int
    planted: tuple[str, ...]


def planted_request(rng: random.Random, *, client: str, model: str, tag: str, slow: bool = True) -> Planted:
    """A request of any of the APIs. tag: a word by which it is known where it arrives. slow: whether detectors may
    be made to take long."""
    floor = PUBLIC if client == "open" else GENERAL
    texts, notes = [rng.choice(FILLER) for _ in range(rng.randint(1, 4))], []
    places: dict[str, str] = {}
    pieces: list[str] = []
    for _ in range(rng.choice([0, 0, 1, 1, 1, 2])):
        kind = rng.choice([name for name in PLANTS if slow or name != "slow"])
        if kind == "slow" and rng.random() < 0.8:
            continue
        level, make = PLANTS[kind]
        text = make(rng)
        if kind in DISGUISED and rng.random() < 0.3:
            disguise = rng.choice(DISGUISED[kind])
            text = disguise(text)
            notes.append(disguise.__name__)
        place = rng.choice(["text", "split", "tool", "arguments", "result", "system", "name"])
        if place == "split" and kind in SPLIT and not notes and not pieces:
            cut = rng.randint(len(text) // 3, 2 * len(text) // 3)
            pieces = [text[:cut], text[cut:]]
        elif place in ("text", "split"):
            texts[rng.randrange(len(texts))] += f"\n{text}\n"
        else:
            places[place] = f"{places[place]}\n{text}\n" if place in places else text
        notes.append(f"{kind} in {place}")
        floor = max(floor, PUBLIC if client == "open" and kind in OPEN_CLIENT_FREE else level)
    picture = rng.random() < 0.06
    body, path = _body(rng, texts, pieces, places, picture=picture)
    if "system" in places and client != "open" and path != "/v1/completions":
        floor = max(floor, PROPRIETARY)
    if picture and path != "/v1/completions":
        floor, notes = UNKNOWN, [*notes, "picture"]
    headers = {}
    if rng.random() < 0.15:
        declared = rng.randrange(6)
        headers["x-freehold-class"] = WORDS[declared]
        floor, notes = max(floor, declared), [*notes, f"declared {WORDS[declared]}"]
    stream = rng.random() < 0.4
    body |= {"model": model, "stream": stream, "user": tag} if path != "/v1/messages" else {
        "model": model, "stream": stream, "max_tokens": 16, "metadata": {"user_id": tag}
    }  # fmt: skip
    return Planted(path, body, headers, floor, tuple(notes))


def _body(
    rng: random.Random, texts: list[str], pieces: list[str], places: dict[str, str], *, picture: bool
) -> tuple[dict[str, Any], str]:
    path = rng.choice(["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"])
    if path == "/v1/completions":
        # It knows texts alone.
        return {"prompt": [*texts, *places.values(), *pieces]}, path
    anthropic = path == "/v1/messages"
    messages: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        messages.append({"role": "user" if number % 2 == 0 else "assistant", "content": text})
    text_part = {"/v1/responses": "input_text"}.get(path, "text")
    if pieces:
        if rng.random() < 0.5:
            messages.append({"role": "user", "content": [{"type": text_part, "text": piece} for piece in pieces]})
        else:
            messages += [{"role": "user", "content": piece} for piece in pieces]
    messages += _tool_use(path, places)
    if picture:
        shown: dict[str, Any] = {
            "/v1/messages": {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
            "/v1/responses": {"type": "input_image", "image_url": "https://a.example/b.png"},
        }.get(path, {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}})
        messages.append({"role": "user", "content": [shown, {"type": text_part, "text": "What is this?"}]})
    body: dict[str, Any] = {"input" if path == "/v1/responses" else "messages": messages}
    if "system" in places:
        if anthropic:
            body["system"] = places["system"]
        elif path == "/v1/responses":
            body["instructions"] = places["system"]
        else:
            messages.insert(0, {"role": rng.choice(["system", "developer"]), "content": places["system"]})
    if "tool" in places or "name" in places:
        schema = {"type": "object", "properties": {places.get("name", "q"): {"type": "string"}}}
        told = places.get("tool", "Searches.")
        function = {"name": "search", "description": told, "parameters": schema}
        body["tools"] = {
            "/v1/messages": [{"name": "search", "description": told, "input_schema": schema}],
            "/v1/responses": [{"type": "function", **function}],
        }.get(path, [{"type": "function", "function": function}])
    return body, path


def _tool_use(path: str, places: dict[str, str]) -> list[dict[str, Any]]:
    """A call and its result, if one of them holds something."""
    if not {"arguments", "result"} & set(places):
        return []
    arguments, result = {"q": {"deep": [places.get("arguments", "x")]}}, places.get("result", "nothing")
    if path == "/v1/messages":
        return [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "search", "input": arguments}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": result}]},
        ]
    written = json.dumps(arguments)
    if path == "/v1/responses":
        return [
            {"type": "function_call", "call_id": "t1", "name": "search", "arguments": written},
            {"type": "function_call_output", "call_id": "t1", "output": result},
        ]
    call = {"id": "t1", "type": "function", "function": {"name": "search", "arguments": written}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": result},
    ]
