"""Finds what looks like a payment card number (PAN) in text: 13 to 19 digits that pass the Luhn check, bare or in groups.

It guards against accidents, not against a sender who hides a number on purpose. Two strengths, because one number in ten passes Luhn by chance:
free text is refused for any such number; an identifier (order numbers are digits too) only when prefix and length are those of a card scheme.
Digits that touch letters (hex ids, ULIDs) count only with a scheme's prefix, and UUIDs never count.
"""

from __future__ import annotations

import re
from typing import Final

PAN_DIGITS_MIN: Final = 13
PAN_DIGITS_MAX: Final = 19

# One separator between digits, as cards are printed and typed: space, no-break space, hyphen, the dashes, full stop.
_SEPARATORS: Final = " \u00a0\u2009\u202f\\-\u2010-\u2015.\u2212"
_RUN: Final = re.compile(rf"\d(?:[{_SEPARATORS}]?\d){{{PAN_DIGITS_MIN - 1},}}")
_BYTES_RUN: Final = re.compile(rb"[0-9](?:[ .-]?[0-9]){%d}" % (PAN_DIGITS_MIN - 1))
_GROUP: Final = re.compile(r"\d+")
_UUID: Final = re.compile(r"(?<![0-9A-Za-z])[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![0-9A-Za-z])")
# Prefixes and lengths of the schemes (ISO/IEC 7812 allocations as the schemes publish them).
_SCHEME: Final = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:6011|64[4-9]\d|65\d{2})\d{12,15}"  # Discover, RuPay, Elo
    r"|3(?:0[0-5]|[689]\d)\d{11,16}"  # Diners Club
    r"|35(?:2[89]|[3-8]\d)\d{12,15}"  # JCB
    r"|62\d{14,17}"  # UnionPay
    r"|(?:50|5[6-9]|6[0-9])\d{11,17}"  # Maestro and domestic schemes
    r"|220[0-5]\d{12,15}"  # Mir
    r"|9792\d{12}"  # Troy
)
# Luhn: every second digit from the right is doubled and its digits summed.
_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others. Digits of any script count."""
    values = [int(digit) for digit in digits]
    return (sum(values[-1::-2]) + sum(_DOUBLED[value] for value in values[-2::-2])) % 10 == 0


def may_hold_card(raw: bytes) -> bool:
    """A cheap first look at a whole request body: False means that no text in it can hold a card number.

    Only bodies that are plain ASCII without escapes can be cleared; everything else needs the look at each text.
    """
    return not raw.isascii() or b"\\" in raw or _BYTES_RUN.search(raw) is not None


def holds_card(text: str, *, identifier: bool = False) -> bool:
    """Whether `text` holds what looks like a card number."""
    if len(text) < PAN_DIGITS_MIN:
        return False
    text = _UUID.sub("|", text)
    return any(_run_is_card(text, run, identifier=identifier) for run in _RUN.finditer(text))


def _run_is_card(text: str, run: re.Match[str], *, identifier: bool) -> bool:
    """Try every stretch of whole groups of the run: `ref 42 4111 1111 1111 1111` holds a card, and 20 digits in one piece do not."""
    start, end = run.span()
    touches_letter = text[start - 1 : start].isalpha() or text[end : end + 1].isalpha()
    scheme_only = identifier or touches_letter
    groups = _GROUP.findall(run.group())
    for first in range(len(groups)):
        digits = ""
        for group in groups[first:]:
            digits += group
            if len(digits) > PAN_DIGITS_MAX:
                break
            if len(digits) >= PAN_DIGITS_MIN and _digits_are_card(digits, scheme_only=scheme_only):
                return True
    return False


def _digits_are_card(digits: str, *, scheme_only: bool) -> bool:
    ascii_digits = "".join(str(int(digit)) for digit in digits)
    if scheme_only and _SCHEME.fullmatch(ascii_digits) is None:
        return False
    return passes_luhn(ascii_digits) and ascii_digits.strip("0") != ""
