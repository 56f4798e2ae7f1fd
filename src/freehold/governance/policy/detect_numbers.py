"""Payment cards and bank accounts: numbers with check digits, however they are spaced."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate

from freehold.governance.policy.detector import Detector

# Numbers as networks issue them, without regard to the check digit.
_NETWORKS = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"
    r"|3[47][0-9]{13}"
    r"|(?:6011|64[4-9][0-9]|6[25][0-9]{2}|81[0-9]{2}|352[89]|35[3-8][0-9])[0-9]{12,15}"
    r"|(?:30[0-5]|309|3[689])[0-9]{11,16}"
    r"|220[0-4][0-9]{12}"
    r"|(?:50|5[6-9]|6[0137])(?:[0-9]{14}|[0-9]{16}|[0-9]{17})"
)
_DOUBLED = {"0": 0, "1": 2, "2": 4, "3": 6, "4": 8, "5": 1, "6": 3, "7": 5, "8": 7, "9": 9}
_LEAST_DIGITS, _MOST_DIGITS = 13, 19
_PREFIX_DIGITS = 4  # which alone say the network
# Between groups of digits stand signs, up to so many.
_PART = r"(?:[^\w\x00]|_)"
_CARD_RUN = re.compile(rf"(?<![0-9])[0-9]{{1,19}}(?:{_PART}{{1,8}}[0-9]{{1,19}})*(?![0-9])")
_GROUP = re.compile(r"([0-9]+)([^0-9]*)")
_USUAL_SIGNS = ("", "-", "_", ".", "/")
_DIGESTS = (32, 40, 56, 64, 96, 128)
_LONGEST_DIGEST = 128
_HEX_BEFORE = re.compile(r"(?<![A-Za-z0-9])[0-9a-fA-F]*$")
_HEX_AFTER = re.compile(r"[0-9a-fA-F]*(?![A-Za-z0-9])")
_LONG_ENOUGH = re.compile(rf"(?:[0-9]{_PART}{{0,8}}){{12}}[0-9]")


def luhn_fits(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1)."""
    return (sum(map(int, digits[-1::-2])) + sum(_DOUBLED[digit] for digit in digits[-2::-2])) % 10 == 0


@cache
def _issued_lengths(prefix: str) -> tuple[int, ...]:
    """How many digits numbers have that networks issue and that begin so."""
    lengths = range(_LEAST_DIGITS, _MOST_DIGITS + 1)
    return tuple(length for length in lengths if _NETWORKS.fullmatch(prefix.ljust(length, "0")))


def find_cards(text: str) -> Iterator[str]:
    """Numbers of payment cards, as digits."""
    if not _LONG_ENOUGH.search(text):
        return
    for match in _CARD_RUN.finditer(text):
        if len(match[0]) >= _LEAST_DIGITS and not _in_digest(text, match):
            yield from _cards_among(_GROUP.findall(match[0]))


def _in_digest(text: str, match: re.Match[str]) -> bool:
    """Whether the digits are a part of a hexadecimal digest: of thousands of these, one looks like a card."""
    start, end = match.span()
    if not (text[start - 1 : start].isalpha() or text[end : end + 1].isalpha()):
        return False
    before = _HEX_BEFORE.search(text, max(0, start - _LONGEST_DIGEST), start)
    after = _HEX_AFTER.match(text, end, end + _LONGEST_DIGEST)
    nbytes = len(before[0] if before else "") + len(match[0]) + len(after[0] if after else "")
    return nbytes in _DIGESTS


def _cards_among(groups: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A number begins where a group does and ends where one does; what else the run holds may come before or after.

    groups: digits, and the signs that follow them.
    """
    run = "".join(digits for digits, _ in groups)
    # Where a group begins in the run, and one more where the last ends.
    starts = [0, *accumulate(len(digits) for digits, _ in groups)]
    group_at = {start: group for group, start in enumerate(starts)}
    for first, start in enumerate(starts[:-1]):
        for length in _issued_lengths(run[start : start + _PREFIX_DIGITS]):
            last = group_at.get(start + length)
            if last is None:
                continue
            digits = run[start : start + length]
            if len(set(digits)) > 1 and luhn_fits(digits) and _is_one_number(groups[first:last]):
                yield digits


def _is_one_number(groups: Sequence[tuple[str, str]]) -> bool:
    """Whether people write one number so: with one usual sign, in groups of three or more, of two, or digit by digit,
    the last one with what is left. With commas, other signs or several ones, in groups of four or more: a list of
    small numbers is none."""
    lengths = [len(digits) for digits, _ in groups]
    shortest, longest = min(lengths[:-1], default=4), max(lengths[:-1], default=4)
    signs = {sign.strip() for _, sign in groups[:-1]}
    if len(signs) > 1 or not signs.issubset(_USUAL_SIGNS):
        return shortest >= 4
    return shortest >= 3 or (longest == shortest and lengths[-1] <= longest)


# Country -> what follows its two check digits: so many digits (n), capital letters (a), or either (c).
_IBAN_TABLE = """
AD 8n12c AE 19n AL 8n16c AT 16n AZ 4a20c BA 16n BE 12n BG 4a6n8c BH 4a14c BR 23n1a1c BY 4c4n16c CH 5n12c CR 18n
CY 8n16c CZ 20n DE 18n DK 14n DO 4c20n EE 16n EG 25n ES 20n FI 14n FO 14n FR 10n11c2n GB 4a14n GE 2a16n GI 4a15c
GL 14n GR 7n16c GT 24c HR 17n HU 24n IE 4a14n IL 19n IQ 4a15n IS 22n IT 1a10n12c JO 4a4n18c KW 4a22c KZ 3n13c
LB 4n20c LC 4a24c LI 5n12c LT 16n LU 3n13c LV 4a13c LY 21n MC 10n11c2n MD 20c ME 18n MK 3n10c2n MR 23n MT 4a5n18c
MU 4a19n3a NL 4a10n NO 11n PK 4a16c PL 24n PS 4a21c PT 21n QA 4a21c RO 4a16c RS 18n SA 2n18c SC 4a20n3a SE 20n
SI 15n SK 20n SM 1a10n12c ST 21n SV 4a20n TL 19n TN 20n TR 6n16c UA 6n19c VA 18n VG 4a16n XK 16n
""".split()
_GAP = r"[\s\-._/,]{0,4}"
# Some write the word itself without a space before it.
_IBAN_BEFORE = r"(?:(?<![A-Za-z0-9])|(?<=[Ii][Bb][Aa][Nn]))"
_SIGNS = {"n": "[0-9]", "a": "[A-Z]", "c": "[A-Z0-9]"}


def _iban_pattern(country: str, form: str) -> str:
    parts = re.findall(r"(\d+)([nac])", form)
    body = "".join(rf"(?:{_GAP}{_SIGNS[sign]}){{{count}}}" for count, sign in parts)
    return rf"{country[0]}{_GAP}{country[1]}(?:{_GAP}[0-9]){{2}}{body}"


_IBAN = re.compile(
    _IBAN_BEFORE
    + "(?:"
    + "|".join(_iban_pattern(*pair) for pair in zip(_IBAN_TABLE[::2], _IBAN_TABLE[1::2], strict=True))
    + ")(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_IBAN_START = re.compile(rf"{_IBAN_BEFORE}[A-Za-z]{_GAP}[A-Za-z]{_GAP}[0-9]{_GAP}[0-9]")
_NO_SIGN = re.compile(r"[^A-Z0-9]")


def iban_fits(iban: str) -> bool:
    """Whether the check digits of an IBAN in capitals, without spaces, fit (ISO 13616: the remainder by 97 is 1)."""
    turned = iban[4:] + iban[:4]
    return int("".join(str(int(character, 36)) for character in turned)) % 97 == 1


def find_ibans(text: str) -> Iterator[str]:
    """International bank account numbers, in capitals without spaces."""
    for start in _IBAN_START.finditer(text):
        match = _IBAN.match(text, start.start())
        if match:
            iban = _NO_SIGN.sub("", match[0].upper())
            if iban_fits(iban):
                yield iban


DETECTORS = (Detector("payment-card", find_cards, is_prompt=True), Detector("iban", find_ibans, is_prompt=True))
