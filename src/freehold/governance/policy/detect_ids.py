"""National numbers of persons that carry check digits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from freehold.governance.policy.detect_numbers import luhn_fits
from freehold.governance.policy.detector import Detector

_LETTERS_ES = "TRWAGMYFPDXBNJZSQVHLCKE"
_LETTERS_FI = "0123456789ABCDEFHJKLMNPRSTUVWXY"
_ODD_IT = dict(
    zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", (
        1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10,
        22, 25, 24, 23), strict=True)
)  # fmt: skip


def _weighted(digits: str, weights: str) -> int:
    return sum(int(digit) * int(weight) for digit, weight in zip(digits, weights, strict=False))


def _is_day(month: str, day: str) -> bool:
    return 1 <= int(month) <= 12 and 1 <= int(day) <= 31


def spanish_fits(text: str) -> bool:
    """DNI and NIE: the letter is the number's remainder by 23."""
    number = text[:-1].translate(str.maketrans("XYZ", "012"))
    return _LETTERS_ES[int(number) % 23] == text[-1]


def italian_fits(text: str) -> bool:
    """Codice fiscale: the last letter checks the fifteen before."""
    even = sum(int(c) if c.isdigit() else ord(c) - ord("A") for c in text[1:15:2])
    return chr((sum(_ODD_IT[c] for c in text[0:15:2]) + even) % 26 + ord("A")) == text[15]


def french_fits(text: str) -> bool:
    """NIR: 97 less the remainder by 97; Corsica's letters stand for numbers."""
    number = int(text[:13].replace("2A", "19").replace("2B", "18"))
    return 97 - number % 97 == int(text[13:])


def polish_fits(text: str) -> bool:
    """PESEL: weights 1, 3, 7, 9; the month holds the century."""
    check = (10 - _weighted(text[:10], "1379137913") % 10) % 10
    return check == int(text[10]) and _is_day(str(int(text[2:4]) % 20), text[4:6])


def belgian_fits(text: str) -> bool:
    """National number: 97 less the remainder by 97, with a 2 before it for those born since 2000."""
    fits = any(97 - int(century + text[:9]) % 97 == int(text[9:]) for century in ("", "2"))
    return fits and _is_day(text[2:4], text[4:6])


def finnish_fits(text: str) -> bool:
    """Personal identity code: the day of birth and the number, by 31."""
    return _LETTERS_FI[int(text[:6] + text[7:10]) % 31] == text[10] and _is_day(text[2:4], text[:2])


def brazilian_fits(text: str) -> bool:
    """CPF: two check digits by 11."""
    if len(set(text)) == 1:
        return False
    for count in (9, 10):
        total = sum(int(digit) * (count + 1 - index) for index, digit in enumerate(text[:count]))
        if total * 10 % 11 % 10 != int(text[count]):
            return False
    return True


def chinese_fits(text: str) -> bool:
    """Resident identity number: ISO 7064 by 11, with X for ten, and a day of birth."""
    total = sum(int(digit) * (2 ** (17 - index) % 11) for index, digit in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17] and _is_day(text[10:12], text[12:14])


def swedish_fits(text: str) -> bool:
    """Personnummer: Luhn over ten digits; the day may be a coordination number's."""
    digits = text[-10:]
    return luhn_fits(digits) and _is_day(digits[2:4], str(int(digits[4:6]) % 60))


# Country, pattern with its usual signs between the parts, check of what is left without them.
_IDS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("ES", r"(?:[0-9]|[XYZ][ -]?)[0-9]{7}[ -]?[A-HJ-NP-TV-Z]", spanish_fits),
    ("FR", r"[12378] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}", french_fits),
    ("PL", r"[0-9]{11}", polish_fits),
    ("BE", r"[0-9]{2}[. ]?[0-9]{2}[. ]?[0-9]{2}[- ]?[0-9]{3}[. ]?[0-9]{2}", belgian_fits),
    ("FI", r"[0-9]{6}[-+A-FU-Y][0-9]{3}[0-9A-FHJ-NPR-Y]", finnish_fits),
    ("BR", r"[0-9]{3}\.?[0-9]{3}\.?[0-9]{3}-?[0-9]{2}", brazilian_fits),
    ("CN", r"[1-8][0-9]{5}(?:19|20)[0-9]{9}[0-9X]", chinese_fits),
    ("SE", r"(?:(?:19|20)[0-9]{6}-?|[0-9]{6}[-+])[0-9]{4}", swedish_fits),
)
# Where one of them can begin; so the text is gone through once, not once for each country.
_START = re.compile(r"(?<![A-Za-z0-9])(?=[0-9] ?[0-9]|[XYZxyz][ -]?[0-9])")
_PATTERNS = tuple(
    (country, re.compile(rf"{pattern}(?![A-Za-z0-9])", re.IGNORECASE), fits) for country, pattern, fits in _IDS
)
# Searched for from its middle, where few words have digits: words of six letters are everywhere.
_ITALIAN_END = re.compile(r"[0-9][0-9][A-EHLMPRSTa-ehlmprst][0-9][0-9][A-Za-z][0-9]{3}[A-Za-z](?![A-Za-z0-9])")
_ITALIAN_START = re.compile(r"(?:.*[^A-Za-z0-9])?([A-Za-z]{6})", re.DOTALL)


def find_ids(text: str) -> Iterator[str]:
    """National numbers, in capitals without spaces; the country's code stands first."""
    yield from _italian(text)
    for start in _START.finditer(text):
        for country, pattern, fits in _PATTERNS:
            match = pattern.match(text, start.start())
            if match is None:
                continue
            number = match[0].upper()
            # Finland's sign is part of the number: it tells the century.
            number = number if country == "FI" else re.sub(r"[ .+-]", "", number)
            if fits(number):
                yield country + number


def _italian(text: str) -> Iterator[str]:
    for match in _ITALIAN_END.finditer(text):
        start = _ITALIAN_START.fullmatch(text, max(0, match.start() - 7), match.start())
        if start and italian_fits(number := (start[1] + match[0]).upper()):
            yield f"IT{number}"


DETECTORS = (Detector("national-id", find_ids, is_prompt=True),)
