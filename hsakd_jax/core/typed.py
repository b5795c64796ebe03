"""Values against their declared type and range, with a remedy in words: one line names the key."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import inspect, structs

from hsakd_jax.core.errors import UserError, unknown


def field_types(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The types of a struct's fields by name, with their ranges."""
    return {field.name: field.type for field in structs.fields(struct)}


def check_section(section: Any, types: Mapping[str, Any], where: str = "") -> None:
    """Checks each value of a section of a config.

    Args:
      section: values by key. For an optional key, '' and 0 mean none.
      types: the types of all keys, as `msgspec` reads them; a mapping is the section of that name.
      where: path of the section, such as 'student'.

    Raises:
      UserError: a key is unknown or missing, or its value has another type or is out of range.
    """
    if not isinstance(section, Mapping):
        raise UserError(
            f"{where or 'the config'} is {section!r}: it must be a section with the keys {', '.join(types)}"
        )
    prefix = f"{where}." if where else ""
    for key in section:
        if key not in types:
            raise UserError(unknown("config key", key, types, prefix))
    for key, kind in types.items():
        if key not in section:
            raise UserError(f"{prefix}{key} is missing: add it to the config file")
        if isinstance(kind, Mapping):
            check_section(section[key], kind, prefix + key)
        else:
            _check(prefix + key, section[key], kind)


def _check(key: str, value: Any, kind: Any) -> None:
    found = inspect.type_info(kind)
    optional = isinstance(found, inspect.UnionType) and inspect.NoneType() in found.types
    if optional and (value is None or value == "" or (value == 0 and not isinstance(value, bool))):
        return
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise UserError(f"{key} is {value!r}: {remedy(found)}") from error


def remedy(kind: inspect.Type) -> str:
    """The remedy, in words: 'set a whole number from 1 to 65536', 'choose last or best'."""
    if isinstance(kind, inspect.UnionType):
        kinds = [k for k in kind.types if not isinstance(k, inspect.NoneType)]
        number = [k for k in kinds if isinstance(k, inspect.FloatType)]  # a whole number is a number
        return remedy((number or kinds)[0])
    if isinstance(kind, inspect.LiteralType):
        return f"choose {' or '.join(map(str, kind.values))}"
    if isinstance(kind, inspect.VarTupleType):
        least = f"at least {kind.min_length} of them" if kind.min_length else "or none"
        return f"set values in brackets, {least}, each {_noun(kind.item_type)}"
    return f"set {_noun(kind)}"


def _noun(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.UnionType):
        kind = next((k for k in kind.types if isinstance(k, inspect.FloatType)), kind.types[0])
    if isinstance(kind, inspect.Metadata):  # of a `Meta` with a description
        return f"{_noun(kind.type)}, {(kind.extra_json_schema or {})['description']}"
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return f"a {'whole number' if isinstance(kind, inspect.IntType) else 'number'}{_range(kind)}"
    return {inspect.BoolType: "True or False", inspect.StrType: "a name"}.get(type(kind), "another value")


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    low = f" from {kind.ge:g}" if kind.ge is not None else f" above {kind.gt:g}" if kind.gt is not None else ""
    if kind.lt is not None:
        return f"{low} to below {kind.lt:g}"
    if kind.le is None:
        return low
    most = kind.le if isinstance(kind.le, int) else f"{kind.le:g}"
    return f"{low} {'to' if kind.ge is not None else 'and at most'} {most}"
