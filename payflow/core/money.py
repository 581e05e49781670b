"""Money: integers of minor units and ISO 4217 codes. No floats, no conversion, no rounding."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeGuard

# Largest amount of a payment, in minor units. 9,223 of them still fit a signed 64-bit sum.
MAX_AMOUNT: Final = 10**15

# ISO 4217 list one as published on this day: the codes in use, funds included; those without a minor unit (metals, XDR,
# the code for no currency) are not money here.
TABLE_DATE: Final = "2026-01-01"
_CODES_BY_EXPONENT: Final = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: (
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE "
        "CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD "
        "HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK "
        "MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD "
        "RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH "
        "USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG"
    ),
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
EXPONENTS: Final[Mapping[str, int]] = MappingProxyType(
    {code: exponent for exponent, codes in _CODES_BY_EXPONENT.items() for code in codes.split()}
)


def is_currency(code: str) -> bool:
    """Whether `code` is in the table, letter by letter: `eur` is not."""
    return code in EXPONENTS


def is_amount(value: object) -> TypeGuard[int]:
    """Whether `value` can be the amount of a payment or a step: an integer (no bool, no float) from 1 to MAX_AMOUNT."""
    return type(value) is int and 1 <= value <= MAX_AMOUNT
