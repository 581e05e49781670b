"""Explains a body that msgspec refused: every bad member with its JSON pointer and a stable code, from the same types
that decode.

msgspec stops at the first fault; a client wants them all. The value is decoded again without types and walked along the
type. No detail repeats a value, and a pointer never repeats a name that we did not choose unless it is short and no
card number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any, Final

import msgspec
from msgspec import inspect

from payflow.adapters import problems
from payflow.adapters.problems import FieldError, Refused
from payflow.core.pan import holds_card

_NAME_MAX: Final = 40
_INTEGER_DIGITS_MAX: Final = 20
_OUT_OF_RANGE: Final = 10**_INTEGER_DIGITS_MAX
_NAMES_OF_TYPES: Final[Mapping[type, str]] = {
    bool: "a boolean", int: "an integer", float: "a number with a fraction or an exponent", str: "a string",
    list: "an array", dict: "an object", type(None): "null",
}  # fmt: skip


def explain(body: bytes, shape: type[msgspec.Struct]) -> Refused:
    """The refusal of a body that does not fit `shape`."""
    try:
        value = json.loads(body.decode(), parse_int=_parse_int, parse_constant=_refuse_constant)
    except RecursionError:
        return Refused(problems.NESTING_TOO_DEEP)
    except ValueError:
        return Refused(problems.MALFORMED_JSON)
    return Refused(problems.INVALID_BODY, errors=islice(_errors(value, _type_of(shape), ""), problems.MAX_FIELD_ERRORS))


def _parse_int(digits: str) -> int:
    """Thousands of digits are out of every range; int() would refuse them, and slowly."""
    return int(digits) if len(digits) <= _INTEGER_DIGITS_MAX else _OUT_OF_RANGE


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def pointer(*names: str) -> str:
    """RFC 6901. A name that is long or looks like a card number is cut off, with all behind it."""
    kept = []
    for name in names:
        if len(name) > _NAME_MAX or holds_card(name):
            break
        kept.append("/" + name.replace("~", "~0").replace("/", "~1"))
    return "".join(kept)


@cache
def _type_of(shape: type[msgspec.Struct]) -> inspect.StructType:
    kind = inspect.type_info(shape)
    assert isinstance(kind, inspect.StructType)
    return kind


def _errors(value: Any, kind: inspect.Type, at: str) -> Iterator[FieldError]:
    match kind:
        case inspect.Metadata():
            errors = list(_errors(value, kind.type, at))
            rule = kind.extra
            if not errors and rule is not None and not rule["accepts"](value):
                errors = [FieldError(rule["code"], rule["detail"], pointer=at)]
            yield from errors
        case inspect.UnionType():
            if value is None and any(isinstance(one, inspect.NoneType) for one in kind.types):
                return
            wanted = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
            yield from _errors(value, wanted[0], at)
        case inspect.StructType():
            yield from _object_errors(value, kind, at)
        case inspect.DictType():
            yield from _map_errors(value, kind, at)
        case inspect.StrType():
            yield from _text_errors(value, kind, at)
        case inspect.IntType():
            yield from _integer_errors(value, kind, at)
        case _:
            raise AssertionError(f"no request type uses {type(kind).__name__}")


def _wrong_type(value: Any, wanted: str, at: str) -> FieldError:
    got = _NAMES_OF_TYPES[type(value)]
    code = "not_an_integer" if wanted == "an integer" and type(value) is float else "wrong_type"
    return FieldError(code, f"must be {wanted}, not {got}", pointer=at)


def _object_errors(value: Any, kind: inspect.StructType, at: str) -> Iterator[FieldError]:
    if type(value) is not dict:
        yield _wrong_type(value, "an object", at)
        return
    known = {field.encode_name: field for field in kind.fields}
    for name, field in known.items():
        if name in value:
            yield from _errors(value[name], field.type, at + pointer(name))
        elif field.required:
            yield FieldError("missing", "is required", pointer=at + pointer(name))
    for name in value:
        if name not in known:
            yield FieldError("unknown", "is not a member of this body", pointer=at + pointer(name))


def _map_errors(value: Any, kind: inspect.DictType, at: str) -> Iterator[FieldError]:
    if type(value) is not dict:
        yield _wrong_type(value, "an object", at)
        return
    if kind.max_length is not None and len(value) > kind.max_length:
        yield FieldError("too_many", f"may have {kind.max_length} members", pointer=at)
    for name, item in value.items():
        for error in _errors(name, kind.key_type, at + pointer(name)):
            yield FieldError(error.code, "the name " + error.detail, pointer=error.pointer)
        yield from _errors(item, kind.value_type, at + pointer(name))


def _text_errors(value: Any, kind: inspect.StrType, at: str) -> Iterator[FieldError]:
    if type(value) is not str:
        yield _wrong_type(value, "a string", at)
    elif kind.max_length is not None and len(value) > kind.max_length:
        yield FieldError("too_long", f"may have {kind.max_length} characters", pointer=at)
    elif kind.min_length is not None and len(value) < kind.min_length:
        yield FieldError("too_short", f"needs {kind.min_length} characters or more", pointer=at)
    elif kind.pattern is not None and re.search(kind.pattern, value) is None:
        yield FieldError("wrong_form", "has characters or a form that are not allowed", pointer=at)


def _integer_errors(value: Any, kind: inspect.IntType, at: str) -> Iterator[FieldError]:
    if type(value) is not int:
        yield _wrong_type(value, "an integer", at)
    elif (kind.ge is not None and value < kind.ge) or (kind.le is not None and value > kind.le):
        yield FieldError("out_of_range", f"must be from {kind.ge} to {kind.le}", pointer=at)
