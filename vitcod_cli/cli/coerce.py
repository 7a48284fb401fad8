"""Strings and YAML values to the types of our options.

Typer reads values through pydantic, whose import alone takes longer than a whole ``gen-mask``; our
options need a handful of types.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from vitcod_cli.errors import shown


def as_type(value: Any, hint: Any) -> Any:
    """``value`` as the type ``hint``: int, float, str, bool, a Literal, a list or tuple of these, or None too.

    Raises:
        ValueError: saying what was expected, such as ``must be a whole number, not 'many'``.
    """
    if value is None:
        return None
    hint = bare(hint)
    if get_origin(hint) is list:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"must be a list, not {shown(value)}")
        return [as_type(item, get_args(hint)[0]) for item in value]
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(get_args(hint)):
            raise ValueError(f"must be {len(get_args(hint))} values, not {shown(value)}")
        return tuple(as_type(item, part) for item, part in zip(value, get_args(hint), strict=True))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"must be one of {', '.join(map(str, get_args(hint)))}, not {shown(value)}")
        return value
    return _as_scalar(value, hint)


def bare(hint: Any) -> Any:
    """``hint`` without ``Annotated`` and ``| None``."""
    if get_origin(hint) is Annotated:
        return bare(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        choices = [choice for choice in get_args(hint) if choice is not type(None)]
        if len(choices) == 1:
            return bare(choices[0])
    return hint


def _as_scalar(value: Any, hint: Any) -> Any:
    # True is an int to Python, and never meant as one.
    if isinstance(value, bool) == (hint is bool) and isinstance(value, (str, int, float)):
        try:
            # Numbers from strings too: so they come from the command line, and YAML 1.1 reads 1e-4 as one.
            if hint is not int or not isinstance(value, float):
                return hint(value)
        except (ValueError, OverflowError):  # a whole number may be too large for a float, or to be read
            pass
    expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(hint, "text")
    raise ValueError(f"must be {expected}, not {shown(value)}")
