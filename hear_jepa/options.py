"""Options and configurations are frozen dataclasses: how their numbers and names are checked, and how they are read."""

import dataclasses
import math
import re
import reprlib
import typing
from collections.abc import Collection, Mapping
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


def matching(pattern: str, what: str) -> str:
    """A field of text, by a regular expression and the words for it; there is no default."""
    return dataclasses.field(default="", metadata={"pattern": (re.compile(pattern), what)})


def choose(table: Mapping[str, T], name: str, option: str) -> T:
    """The entry of a table of choices; raises OptionError, which lists the names that there are."""
    check_name(name, table, option)
    return table[name]


def check_name(name: str, names: Collection[str], option: str) -> str:
    """The name, if it is one of these. Raises OptionError."""
    if name not in names:
        raise OptionError(f"{option} is {name!r}: choose from {', '.join(names)}")
    return name


def check_least(value: float, least: float, option: str) -> None:
    """Raise OptionError for a number that is less."""
    if value < least:
        raise OptionError(f"{option} is {value}: it must be at least {least:g}")


def check_fields(options: Any, prefix: str = "") -> None:
    """Raise OptionError for a field of a dataclass, or of one inside it, that is not `within` its range or `one_of` its
    names. prefix: "--" names fields as the command line does."""
    for field in dataclasses.fields(options):
        name, value = prefix + field.name, getattr(options, field.name)
        if prefix.startswith("--"):
            name = name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{name}.")
        elif "names" in field.metadata:
            check_name(value, field.metadata["names"], name)
        elif "pattern" in field.metadata:
            pattern, what = field.metadata["pattern"]
            if not pattern.fullmatch(value):
                raise OptionError(f"{name} is {value!r}: it must be {what}")
        elif "range" in field.metadata:
            least, greatest = field.metadata["range"]
            if not (math.isfinite(value) and least <= value <= greatest):
                wanted = f"in {least:g} … {greatest:g}" if math.isfinite(greatest) else f"at least {least:g}"
                raise OptionError(f"{name} is {value}: it must be {wanted}")


def changed(options: T, values: Mapping[str, Any], prefix: str = "") -> T:
    """A dataclass with other values, from JSON or TOML, section by section.

    Raises OptionError, with the name, for an unknown one and for a value that is of another type than its field.
    """
    hints = typing.get_type_hints(type(options))
    for name in values:
        if name not in hints:
            raise OptionError(f"unknown option {prefix}{name}; there are {', '.join(sorted(hints))}")
    typed = {name: _typed(prefix + name, value, hints[name], getattr(options, name)) for name, value in values.items()}
    return dataclasses.replace(options, **typed)  # pyright: ignore[reportArgumentType, reportCallIssue, reportReturnType]


def _typed(name: str, value: Any, hint: Any, before: Any = None) -> Any:
    """A value of JSON or TOML as the type of a field, which was `before`."""
    kind, kinds = typing.get_origin(hint) or hint, typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return changed(hint() if before is None else before, value, f"{name}.")  # pyright: ignore[reportCallIssue]
    if kind is Literal:
        return check_name(value, kinds, name)
    if kind is tuple and isinstance(value, list):
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) == len(value):
            return tuple(_typed(f"{name}.{index}", *pair) for index, pair in enumerate(zip(value, kinds, strict=True)))
    if kind is list and isinstance(value, list):
        return [_typed(f"{name}.{index}", item, kinds[0]) for index, item in enumerate(value)]
    if kind is dict and isinstance(value, dict):
        return {key: _typed(f"{name}.{key}", item, kinds[1]) for key, item in value.items()} if kinds else value
    if Path in (hint, *kinds) and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    lists = {tuple: f"a list of {len(kinds)}", list: "a list", dict: "a table"}
    section = "a section, with options in it" if dataclasses.is_dataclass(hint) else None
    wanted = section or lists.get(kind) or getattr(hint, "__name__", hint)
    raise OptionError(f"{name} is {reprlib.repr(value)}: it must be {wanted}")
