"""What is looked for is found in every disguise that is promised, and its near misses are not."""

from __future__ import annotations

import base64
import json
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.governance.policy.classes import DataClass
from freehold.governance.policy.classify import Classifier
from freehold.governance.policy.detect_ids import find_ids
from freehold.governance.policy.detect_numbers import find_cards, find_ibans
from freehold.governance.policy.detect_secrets import find_private_keys, find_tokens, find_url_passwords
from freehold.governance.policy.detect_words import find_emails, find_phones, find_source_code
from freehold.governance.policy.settings import read_settings

# Numbers that networks and standards publish for tests.
CARDS = ["4111111111111111", "5555555555554444", "378282246310005", "6011111111111117", "30569309025904",
         "3530111333300000", "2223003122003222", "6200000000000005", "4222222222222"]  # fmt: skip
IBANS = ["GB82WEST12345698765432", "DE89370400440532013000", "FR1420041010050500013M02606", "NO9386011117947",
         "CH9300762011623852957", "MT84MALT011000012345MTLCAST001S", "BR9700360305000010009795493P1",
         "LC55HEMM000100010012001200023015", "NL91ABNA0417164300", "SC18SSCB11010000000000001497USD"]  # fmt: skip
IDS = {
    "ES": ["12345678Z", "X1234567L", "12345678-z"],
    "IT": ["RSSMRA85T10A562S"],
    "FR": ["255081416802538", "2 55 08 14 168 025 38"],
    "PL": ["44051401359"],
    "BE": ["85.07.30-033.28", "85073003328"],
    "FI": ["131052-308T"],
    "BR": ["529.982.247-25", "52998224725"],
    "CN": ["11010519491231002X"],
    "SE": ["811218-9876", "19811218-9876"],
}


def classifier(text: str = "", **classes: str) -> Classifier:
    lines = ['base = "public"', *(f'{name.replace("_", "-")} = "{word}"' for name, word in classes.items())]
    return Classifier(read_settings("[classes]\n" + "\n".join(lines) + "\n" + text))


def found_in(*texts: str) -> dict[str, int]:
    body = {"model": "m", "messages": [{"role": "user", "content": text} for text in texts]}
    return dict(classifier(source_code="off").classify(body).findings)


@pytest.mark.parametrize("number", CARDS)
def test_cards(number: str) -> None:
    assert set(find_cards(f"pay with {number}.")) == {number}
    for sign in (" ", "-", ".", "  ", "\n"):
        spaced = sign.join(number[i : i + 4] for i in range(0, len(number), 4))
        assert number in set(find_cards(f"no 12, {spaced}, thanks")), sign
    assert number in set(find_cards(" ".join(number)))


def test_a_word_before_a_card_does_not_hide_it() -> None:
    assert set(find_cards(f"card{CARDS[0]}and")) == {CARDS[0]}


@given(st.sampled_from(CARDS), st.integers(0, 18), st.integers(1, 9))
def test_a_changed_digit_is_no_card(number: str, place: int, by: int) -> None:
    place %= len(number)
    changed = number[:place] + str((int(number[place]) + by) % 10) + number[place + 1 :]
    assert set(find_cards(changed)) == set()


@pytest.mark.parametrize(
    "text",
    ["1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17", "2024-01-01 12:00:00.123456", "0000 0000 0000 0000",
     CARDS[0] + "1", "ab" + CARDS[0] + "0" * 20 + "ab", "c0ffee" + CARDS[0] + "f" * 42, "1234567890123",
     "0.4111, 0.1111, 0.1111, 0.1111"],
)  # fmt: skip
def test_no_cards(text: str) -> None:
    assert list(find_cards(text)) == []


@pytest.mark.parametrize("iban", IBANS)
def test_ibans(iban: str) -> None:
    assert set(find_ibans(f"to {iban}, please")) == {iban}
    spaced = " ".join(iban[i : i + 4] for i in range(0, len(iban), 4))
    assert set(find_ibans(f"to {spaced}.")) == {iban}
    assert set(find_ibans(iban.lower())) == {iban}
    wrong = iban[:2] + f"{(int(iban[2:4]) + 1) % 97:02}" + iban[4:]
    assert list(find_ibans(wrong)) == []


@pytest.mark.parametrize(("country", "number"), [(c, n) for c, numbers in IDS.items() for n in numbers])
def test_national_ids(country: str, number: str) -> None:
    assert any(value.startswith(country) for value in find_ids(f"id: {number};"))
    digits = [i for i, c in enumerate(number) if c.isdigit()]
    place = digits[len(digits) // 2]
    changed = number[:place] + str((int(number[place]) + 1) % 10) + number[place + 1 :]
    assert not any(value.startswith(country) for value in find_ids(f"id: {changed};"))


def random_word(rng: random.Random, signs: str, count: int) -> str:
    return "".join(rng.choice(signs) for _ in range(count))


LETTERS = string.ascii_letters + string.digits
TOKENS = {
    "github": ("ghp_", LETTERS, 36), "gitlab": ("glpat-", LETTERS, 20), "aws": ("AKIA", "ABCDEFGHIJKLMNOP234567", 16),
    "anthropic": ("sk-ant-api03-", LETTERS, 80), "openai": ("sk-proj-", LETTERS, 48),
    "stripe": ("sk_live_", LETTERS, 24), "google": ("AIza", LETTERS, 35), "slack": ("xoxb-", string.digits, 24),
    "hugging face": ("hf_", LETTERS, 34), "npm": ("npm_", LETTERS, 36),
    "freehold": ("fh-0123456789abcdef-", LETTERS, 43),
}  # fmt: skip


@pytest.mark.parametrize("maker", TOKENS)
def test_tokens(maker: str) -> None:
    head, signs, count = TOKENS[maker]
    token = head + random_word(random.Random(maker), signs, count)
    assert list(find_tokens(f"export KEY='{token}'")) == [token]
    assert list(find_tokens(f"export KEY='{head}{token[len(head) : len(head) + 5]}'")) == []
    assert found_in(f"key is {token}")["access-token"] == 1


def test_private_keys_and_passwords() -> None:
    for kind in ("", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "):
        assert len(list(find_private_keys(f"-----BEGIN {kind}PRIVATE KEY-----\nMII"))) == 1
    assert list(find_private_keys("-----BEGIN PGP PRIVATE KEY BLOCK-----")) != []
    assert list(find_private_keys("-----BEGIN PUBLIC KEY-----\n-----BEGIN CERTIFICATE-----")) == []
    assert list(find_url_passwords("postgres://app:hunter22@db.internal/x")) == ["hunter22"]
    for example in (
        "postgres://user:password@host/x",
        "http://u:${PASSWORD}@h/",
        "https://a.b:8080/x@y",
        "http://u:<pw>@h",
    ):
        assert list(find_url_passwords(example)) == []


def test_addresses_of_persons() -> None:
    assert set(find_emails("Write to Bob.B+x@mail.acme.io or bob@example.com or a@b, git@github.com:a/b.git")) == {
        "bob.b+x@mail.acme.io"
    }
    assert set(find_phones("call +49 (30) 123-45 67 or 030 1234567 or 1+12345678")) == {"49301234567"}


@pytest.mark.parametrize(
    "code",
    ["def f(x):\n    y = x + 1\n    return y\n", "#include <stdio.h>\nint main() {\n  return 0;\n}\n",
     "import os\nfrom a.b import c\nprint(os.name)\n", "const a = 1;\nlet b = a;\nexport function f() {}\n",
     "fn main() {\n    let x = 1;\n}\n", "package main\nimport \"fmt\"\nfunc main() {\n"],
)  # fmt: skip
def test_source_code(code: str) -> None:
    assert list(find_source_code(f"What does this do?\n\n{code}")) != []


def test_prose_is_no_source_code() -> None:
    prose = "Dear all,\nthe meeting is moved to Monday.\n\nWe return to the topic then (see below).\nRegards,\nA.\n" * 5
    assert list(find_source_code(prose)) == []


def test_disguises() -> None:
    card, name = CARDS[0], {"payment-card": 1}
    wide = "".join(chr(ord(c) + 0xFEE0) for c in card)
    arabic = "".join(chr(0x660 + int(c)) for c in card)
    hidden = "\u200b".join(card)
    soft = card[:8] + "\u00ad" + card[8:]
    dashed = "\u2011".join(card[i : i + 4] for i in range(0, 16, 4))
    no_break = "\u00a0".join(card[i : i + 4] for i in range(0, 16, 4))
    packed = base64.b64encode(f"the card is {card}, ok?".encode()).decode()
    safe = base64.urlsafe_b64encode(f"??>>the card is {card}".encode()).decode()
    glued = f"see-also_path/{base64.b64encode(f'the card is {card}.'.encode()).decode()}"
    lines = base64.encodebytes(f"{'a few words of text, ' * 5}{card}".encode()).decode()
    nested = json.dumps({"args": json.dumps({"n": card})})
    escaped = '{"n": "' + "".join(f"\\u{ord(c):04x}" for c in card) + '"}'
    number = json.dumps({"n": int(card)})
    for text in (
        wide,
        arabic,
        hidden,
        soft,
        dashed,
        no_break,
        glued,
        lines,
        f"x={packed}",
        safe,
        nested,
        escaped,
        number,
    ):
        assert found_in(f"{text}") == name, text
    # An invisible digit's neighbour must not hide what stands there without it.
    assert found_in(f"{card}\u200b5") == name


def test_split_over_neighbours() -> None:
    assert found_in("4111 1111", "1111 1111") == {"payment-card": 1}
    assert found_in("x " * 2500 + "-----BEGIN PRIV", "ATE KEY-----" + " x" * 2500) == {"private-key": 1}
    assert found_in("there are 12", "4111 1111", "1111 1111", "5 of them") == {"payment-card": 1}
    assert found_in("there are 12", "4111 11", "11 1111", " 1111", "5 of them") == {"payment-card": 1}
    parts = [{"type": "text", "text": "ghp_abcdefghij"}, {"type": "text", "text": "klmnopqrstuvwxyz0123456789"}]
    body = {"messages": [{"role": "user", "content": parts}]}
    assert classifier().classify(body).findings == {"access-token": 1}
    between = [{"role": "user", "content": "41111111"}, {"role": "assistant", "content": "ok"},
               {"role": "user", "content": "11111111"}]  # fmt: skip
    assert classifier().classify({"messages": between}).findings == {"payment-card": 1}


MARKER = """
[[marker]]
name = "nightjar"
class = "proprietary"
texts = ["Project Nightjar"]
paths = ["src/billing/**", "*.tfstate", "deploy/*/keys.toml"]
repositories = ["github.com/acme/core-*"]
"""


@pytest.mark.parametrize(
    "text",
    ["about project nightjar", "PROJECT-NIGHTJAR", "Project\n\n  Nightjar", "Pro\u200bject N\u00ecghtjar",
     "Pr\u043eject N\u0456ghtjar", "/home/a/src/billing/tax/vat.py:3", "C:\\w\\src\\billing\\x.c", "a/src/billing/b",
     "terraform.tfstate", "./deploy/prod/keys.toml", "git@github.com:acme/core-api.git",
     "https://github.com/ACME/core-x"],
)  # fmt: skip
def test_markers(text: str) -> None:
    result = classifier(MARKER).classify({"input": f"look at {text} please"})
    assert result.findings == {"marker:nightjar": 1}
    assert result.data_class is DataClass.PROPRIETARY


@pytest.mark.parametrize(
    "text",
    ["my_src/billing/x", "src/billings/x", "src/billing", "core-api", "github.com/acme/corex", "deploy/keys.toml",
             "x.tfstates"]
)  # fmt: skip
def test_no_markers(text: str) -> None:
    assert classifier(MARKER).classify({"input": f"look at {text} please"}).findings == {}


@settings(max_examples=200)
@given(st.text(max_size=300))
def test_nothing_raises(text: str) -> None:
    found = classifier(MARKER, email="regulated", phone="regulated").classify({"input": text})
    assert not any(kind.startswith("failed") for kind in found.findings)


@pytest.mark.parametrize(
    "text", ["4" * 200_000, "1 " * 100_000, "a@" * 50_000, "eyJ" * 50_000, "/a" * 100_000, "{" * 5000, "A" * 200_000,
             "src/" * 50_000, "-----BEGIN " * 20_000, "://a:" * 40_000, "DE12 " * 40_000]
)  # fmt: skip
def test_hostile_texts_take_no_long_time(text: str) -> None:
    """Below 10 s, which is when the class would be unknown; a text of 200,000 signs takes a few tenths of a second."""
    found = classifier(MARKER, email="regulated", phone="regulated").classify({"input": text})
    assert not any(kind.startswith("failed") for kind in found.findings)
