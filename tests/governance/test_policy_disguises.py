"""One reading of every text: what people see, or what a parser makes of it, is what is looked for."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.governance.policy.classify import Classifier
from freehold.governance.policy.settings import read_settings
from freehold.governance.policy.spelling import plain, spellings, squeezed

CARD, IBAN = "4111111111111111", "DE89370400440532013000"
GHP = "ghp_aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5"
UNITS = "".join(f"\\u{ord(digit):04x}" for digit in CARD)
SETTINGS = read_settings("""
[classes]
base = "public"
source-code = "off"
[[marker]]
name = "nightjar"
class = "proprietary"
texts = ["Project Nightjar"]
paths = ["billing/**", "*.tfstate"]
repositories = ["github.com/acme/core-*"]
""")


def found_in(content: Any) -> dict[str, int]:
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return dict(Classifier(SETTINGS).classify(body).findings)


CARDS = {
    **{f"U+{ord(sign):04X} between digits": sign.join(CARD) for sign in
       "\x00\x01\x08\x1f\x7f\u034f\u115f\u1160\u17b4\u180b\u200b\u2060\u2800\u3164\ufe0f\uffa0\ufffd\u0301"},
    "keycaps": "".join(digit + "\ufe0f\u20e3" for digit in CARD),
    "tags": "".join(chr(0xE0000 + ord(digit)) for digit in CARD),
    "circled digits": CARD.replace("1", "\u2460"),
    "several signs": "4111 1111-1111 1111",
    "commas": "4111,1111,1111,1111",
    "commas and spaces": "4111, 1111, 1111, 1111",
    "middle dots": "4111\u00b71111\u00b71111\u00b71111",
    "four spaces": "4111    1111    1111    1111",
    "colours between digits": "4111\x1b[32m1111\x1b[0m1111\x1b]0;x\x071111",
    "JSON in prose": f'args = {{"card": "{UNITS}"}}',
    "JSON in a fence": f'```json\n{{"card": "{UNITS}"}}\n```',
    "NDJSON": f'{{"a": 1}}\n{{"card": "{UNITS}"}}',
    "percent signs": "".join(f"%{ord(digit):02x}" for digit in CARD),
    "HTML": "".join(f"&#{ord(digit)};" for digit in CARD),
    "octal": "".join(f"\\{ord(digit):03o}" for digit in CARD),
}  # fmt: skip
TOKENS = {
    "after a written line end": rf'log: {{"env":"A=1\n{GHP}"}}',
    "after a colour": f"\x1b[32m{GHP}\x1b[0m",
    "after a percent sign": f"https://h/?a%3D{GHP}",
    "after an underscore": f"TOKEN_{GHP}",
    "after a letter": f"x{GHP}",
    "a Cyrillic letter": GHP.replace("p", "\u0440", 1),
    "a control": f"ghp_\x01{GHP[4:]}",
    "NUL": f"{GHP[:9]}\x00{GHP[9:]}",
    "a written NUL": f"{GHP[:9]}\\u0000{GHP[9:]}",
}
IBANS = {
    "after a written line end": rf'log: {{"a":"x\n{IBAN}"}}',
    "after its name": f"IBAN{IBAN}",
    "a Cyrillic letter": IBAN.replace("E", "\u0415"),
    "a Cherokee letter": IBAN.replace("D", "\u13a0"),
    "slashes": "/".join(IBAN[i : i + 4] for i in range(0, len(IBAN), 4)),
}
MARKERS = {
    "Armenian": "Pr\u0585ject Nightjar",
    "Greek": "Project \u03b7ightjar",
    "Cherokee": "Project Nightj\u13aar",
    "NUL": "Project Night\x00jar",
    "a backspace": "Project Night\x08jar",
    "strokes": "Pr\u00f8ject Nightjar",
    "digits": "Project N1ghtjar",
    "flags": "Project \U0001f1f3ightjar",
    "a path with a Cyrillic letter": "see bill\u0456ng/a.py",
    "a path with a percent sign": "see billing%2Fa.py",
    "a path with another slash": "see billing\u2215a.py",
    "a path with a control": "bill\x01ing/a.py",
}


@pytest.mark.parametrize("case", CARDS)
def test_cards_in_disguise(case: str) -> None:
    assert found_in(CARDS[case]).get("payment-card") == 1


@pytest.mark.parametrize("case", TOKENS)
def test_tokens_in_disguise(case: str) -> None:
    assert "access-token" in found_in(TOKENS[case])


@pytest.mark.parametrize("case", IBANS)
def test_account_numbers_in_disguise(case: str) -> None:
    assert found_in(IBANS[case]).get("iban") == 1


@pytest.mark.parametrize("case", MARKERS)
def test_names_in_disguise(case: str) -> None:
    assert "marker:nightjar" in found_in(MARKERS[case])


def test_a_private_key_with_look_alikes() -> None:
    assert found_in("-----BEGIN RSA PRIVAT\u0415 K\u0415Y-----").get("private-key")


@pytest.mark.parametrize(
    "text",
    ["4111 x 1111 x 1111 x 1111", "4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1", "41,11,11,11,11,11,11,11",
     "in 2021, 2022, 2023 and 2024", "risk-management-framework-of-the-union", "C:\\new\\table\\100%", "100 % & more;"],
)  # fmt: skip
def test_no_disguises(text: str) -> None:
    assert found_in(text) == {}


@given(st.text())
def test_a_plain_text_is_plain(text: str) -> None:
    once = plain(text)
    assert plain(once) == once
    assert squeezed(once) == squeezed(text)
    # Nothing makes a border between texts, or takes one away.
    assert all(reading.count("\x00") == text.count("\x00") for reading in spellings(text))
    assert not any(unicodedata.category(sign) in ("Cf", "Mn") for sign in once)


@given(st.text(st.characters(max_codepoint=126, min_codepoint=32, exclude_characters="\\%&")))
def test_what_has_no_disguise_is_read_once(text: str) -> None:
    assert spellings(text) == [text]
