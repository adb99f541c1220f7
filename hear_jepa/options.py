"""Options and configurations are frozen dataclasses: how their numbers and names are checked, and how they are read."""

import dataclasses
import math
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from hear_jepa.errors import OptionError

T = TypeVar("T")


def within(default: T, least: float, greatest: float = math.inf) -> T:
    """A field, by its default and the numbers that it may be."""
    return dataclasses.field(default=default, metadata={"range": (least, greatest)})


def one_of(default: str, names: Collection[str]) -> str:
    """A field, by its default and the names that it may be."""
    return dataclasses.field(default=default, metadata={"names": names})


def choose(table: Mapping[str, T], name: str, option: str) -> T:
    """The entry of a table of choices; raises OptionError, which lists the names that there are."""
    check_name(name, table, option)
    return table[name]


def check_name(name: str, names: Collection[str], option: str) -> str:
    """The name, if it is one of these. Raises OptionError."""
    if name not in names:
        raise OptionError(f"{option} is {name!r}: choose from {', '.join(names)}")
    return name


def check_fields(options: Any, prefix: str = "") -> None:
    """Raise OptionError for a field of a dataclass, or of one inside it, that is not `within` its range or `one_of` its
    names. prefix: "--" names fields as the command line does."""
    for field in dataclasses.fields(options):
        name, value = prefix + field.name, getattr(options, field.name)
        if prefix:
            name = name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{name}.")
        elif "names" in field.metadata:
            check_name(value, field.metadata["names"], name)
        elif "range" in field.metadata:
            least, greatest = field.metadata["range"]
            if not (math.isfinite(value) and least <= value <= greatest):
                wanted = f"in {least:g} … {greatest:g}" if math.isfinite(greatest) else f"at least {least:g}"
                raise OptionError(f"{name} is {value}: it must be {wanted}")


def changed(options: T, values: Mapping[str, Any], prefix: str = "") -> T:
    """A dataclass with other values, from JSON or TOML, section by section.

    Raises OptionError, with the name, for an unknown one and for a value that is of another type than its field.
    """
    hints, typed = typing.get_type_hints(type(options)), {}
    for name, value in values.items():
        if name not in hints:
            raise OptionError(f"unknown option {prefix}{name}; there are {', '.join(sorted(hints))}")
        before = getattr(options, name)
        try:
            if not dataclasses.is_dataclass(before):
                typed[name] = _typed(value, hints[name])
            elif isinstance(value, Mapping):
                typed[name] = changed(before, value, f"{prefix}{name}.")
            else:
                raise TypeError("it must be a section, with options in it")
        except (TypeError, OverflowError) as error:
            raise OptionError(f"{prefix}{name} is {value!r}: {error}") from error
    return dataclasses.replace(options, **typed)  # pyright: ignore[reportArgumentType, reportCallIssue, reportReturnType]


def _typed(value: Any, hint: Any) -> Any:
    """A value of JSON or TOML as the type of a field; raises TypeError, which says what it should be."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in arguments:
            return value
        raise TypeError(f"choose from {', '.join(map(str, arguments))}")
    if origin is tuple:
        return _tuple(value, arguments)
    if origin is dict and isinstance(value, Mapping):
        return {key: _typed(item, arguments[1]) for key, item in value.items()}
    if Path in (hint, *arguments) and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise TypeError(f"it must be {getattr(hint, '__name__', hint)}")


def _tuple(value: Any, kinds: Sequence[Any]) -> tuple:
    if not isinstance(value, list):
        raise TypeError("it must be a list")
    if kinds[-1] is Ellipsis:
        kinds = [kinds[0]] * len(value)
    if len(kinds) != len(value):
        raise TypeError(f"it must be a list of {len(kinds)}")
    return tuple(_typed(item, kind) for item, kind in zip(value, kinds, strict=True))
