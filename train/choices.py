"""Choices by name: a table maps names to functions of one signature, and a new choice is one function in it."""

from collections.abc import Mapping
from typing import TypeVar

from hear_jepa.errors import OptionError

T = TypeVar("T")


def choose(table: Mapping[str, T], name: str, option: str) -> T:
    """The entry of that name; raises OptionError, which lists the names that there are."""
    if name not in table:
        raise OptionError(f"{option} is {name!r}: choose from {', '.join(table)}")
    return table[name]
