"""Finds what looks like a payment card number (PAN) in text: 13 to 19 digits that pass the Luhn check, bare or in
groups.

It guards against accidents, not against a sender who hides a number on purpose. Two strengths, because one number in
ten passes Luhn by chance: free text is refused for any such number; an identifier (order numbers are digits too) only
when prefix and length are those of a card scheme. Digits that touch letters (hex ids, ULIDs) count only with a scheme's
prefix, and UUIDs never count.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Final

PAN_DIGITS_MIN: Final = 13
PAN_DIGITS_MAX: Final = 19

# One separator between digits, as cards are printed and typed: space, no-break space, hyphen, the dashes, full stop.
_SEPARATORS: Final = " \u00a0\u2009\u202f\\-\u2010-\u2015.\u2212"
_RUN: Final = re.compile(rf"\d(?:[{_SEPARATORS}]?\d){{{PAN_DIGITS_MIN - 1},}}")
# Wider than _RUN and twice as fast: what it finds is looked at again.
_BYTES_RUN: Final = re.compile(rb"[0-9][0-9 .-]{%d,}[0-9]" % (PAN_DIGITS_MIN - 2))
_GROUP: Final = re.compile(rb"[0-9]+")
_UUID: Final = re.compile(r"(?<![0-9A-Za-z])[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![0-9A-Za-z])")
# Prefixes and lengths of the schemes (ISO/IEC 7812 allocations as the schemes publish them).
_SCHEME: Final = re.compile(
    rb"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    rb"|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}"  # Mastercard
    rb"|3[47]\d{13}"  # American Express
    rb"|(?:6011|64[4-9]\d|65\d{2})\d{12,15}"  # Discover, RuPay, Elo
    rb"|3(?:0[0-5]|[689]\d)\d{11,16}"  # Diners Club
    rb"|35(?:2[89]|[3-8]\d)\d{12,15}"  # JCB
    rb"|62\d{14,17}"  # UnionPay
    rb"|(?:50|5[6-9]|6[0-9])\d{11,17}"  # Maestro and domestic schemes
    rb"|220[0-5]\d{12,15}"  # Mir
    rb"|9792\d{12}"  # Troy
)
# Luhn: every second digit from the right is doubled and its digits summed. As byte tables, so that C does the work.
_VALUES: Final = bytes.maketrans(b"0123456789", bytes(range(10)))
_DOUBLED: Final = bytes.maketrans(b"0123456789", bytes((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)))
_ZEROS: Final = b"0" * PAN_DIGITS_MAX
_NO_END: Final = b"\xff"
_FEW_GROUPS: Final = 5


def passes_luhn(digits: bytes) -> bool:
    """Whether the last of these ASCII digits is the Luhn check digit of the others."""
    return (sum(digits[-1::-2].translate(_VALUES)) + sum(digits[-2::-2].translate(_DOUBLED))) % 10 == 0


def may_hold_card(raw: bytes) -> bool:
    """A quick look at a whole request body: False means that no text in it can hold a card number.

    Only a body of plain ASCII without escapes can be cleared; any other needs the look at each text. One digit string
    in ten is not cleared.
    """
    if b"\\" in raw or not raw.isascii():
        return True
    return any(map(_passing_stretch, _BYTES_RUN.findall(raw)))


def holds_card(text: str, *, identifier: bool = False) -> bool:
    """Whether `text` holds what looks like a card number."""
    if _RUN.search(text) is None:
        return False
    text = _UUID.sub("|", text)
    return any(_run_is_card(text, run, identifier=identifier) for run in _RUN.finditer(text))


def _run_is_card(text: str, run: re.Match[str], *, identifier: bool) -> bool:
    start, end = run.span()
    touches_letter = text[start - 1 : start].isalpha() or text[end : end + 1].isalpha()
    scheme_only = identifier or touches_letter
    ascii_run = "".join(str(int(one)) if one.isdecimal() else " " for one in run.group())
    return _passing_stretch(ascii_run.encode(), scheme_only=scheme_only)


def _passing_stretch(run: bytes, *, scheme_only: bool = False) -> bool:
    """Whether a stretch of whole groups is a card: `42 4111 1111 1111 1111` holds one, and 20 digits in one piece do
    not. The work grows with the number of groups alone: a request full of digits must not hold the loop.
    """
    groups = _GROUP.findall(run)
    if len(groups) <= _FEW_GROUPS:
        return _few_hold_card(groups, scheme_only=scheme_only)
    digits = b"".join(groups)
    bounds = [0, *accumulate(map(len, groups))]
    halves = tuple(_sums_and_ends(digits, bounds, parity) for parity in (0, 1))
    for start in bounds:
        if digits.startswith(_ZEROS, start) or (scheme_only and _SCHEME.match(digits, start) is None):
            continue
        for sums, ends in halves:
            end = ends.find(sums[start], start + PAN_DIGITS_MIN, start + PAN_DIGITS_MAX + 1)
            while end >= 0:
                has_value = digits.count(b"0", start, end) < end - start
                if has_value and (not scheme_only or _SCHEME.fullmatch(digits, start, end)):
                    return True
                end = ends.find(sums[start], end + 1, start + PAN_DIGITS_MAX + 1)
    return False


def _few_hold_card(groups: list[bytes], *, scheme_only: bool) -> bool:
    """The same by trying, a fifth of the price for what most bodies have: an order number of one or two groups."""
    for first in range(len(groups)):
        digits = b""
        for group in groups[first:]:
            digits += group
            if len(digits) > PAN_DIGITS_MAX:
                break
            if len(digits) < PAN_DIGITS_MIN or not passes_luhn(digits):
                continue
            if (not scheme_only or _SCHEME.fullmatch(digits)) and digits.strip(b"0"):
                return True
    return False


def _sums_and_ends(digits: bytes, bounds: list[int], parity: int) -> tuple[bytes, bytearray]:
    """Luhn sums modulo 10 of all prefixes, as they count for windows with an end of this parity, and the same again
    where such a window may end. A window passes when the sum at its start is the one at its end.
    """
    values = bytearray(digits.translate(_VALUES))
    values[parity::2] = digits[parity::2].translate(_DOUBLED)
    sums = bytes([total % 10 for total in accumulate(values, initial=0)])
    ends = bytearray(_NO_END) * len(sums)
    for bound in bounds:
        if bound % 2 == parity:
            ends[bound] = sums[bound]
    return sums, ends
