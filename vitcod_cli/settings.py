"""Hyper-parameters as frozen dataclasses: one declaration gives the option, its help, default and range.

A settings class is a frozen, keyword-only dataclass that derives from :class:`Settings` and names the
panel of the help that its options stand in. Its fields are made with :func:`setting` or
:func:`required`; a field whose type is another settings class is a group, whose options are options of
the whole. The options of a command are one such class, which the command line flattens
(``cli/options.py``) and the Python API takes as it is. Nothing here imports torch, timm or Typer.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeVar, cast, get_type_hints

from vitcod_cli.errors import VitcodError, shown

_KEY = "setting"

ABOUT = "about"
"""Key of a run's ``config.yaml`` for what is no option (versions, checksums); ``--config`` skips it."""

MOST = 2**31 - 1
"""The largest whole number that an option takes unless it says another; an integer to every library."""

LARGEST, SMALLEST = 1e9, 1e-100
"""The largest number that an option takes unless it says another, and the smallest beside 0: what is computed
from them stays finite."""

LONGEST = 4096
"""Characters of the longest text; no system has longer paths."""

_NOT_RECORDED = ("resume", "overwrite")

SettingsT = TypeVar("SettingsT", bound="Settings")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def _per_class(function: FunctionT) -> FunctionT:
    """``function`` of a class, computed once for each: it reads the class's types, which takes time."""
    return cast(FunctionT, cache(function))


@dataclass(frozen=True)
class Setting:
    """What the command line needs to know of one field, beside its type and default.

    Attributes:
        flag: the option; of a positional argument, its name in messages.
        hint: what to do when a required option is missing; None for one that has a default.
        above, below: bounds that the value itself may not have, as ``minimum`` and ``maximum`` may.
        blank: whether an empty text means something.
        aliases: other names of the option, accepted and not shown: those of the published code, DeiT and timm.
        positional: an argument rather than an option.
    """

    help: str
    flag: str = ""
    panel: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    blank: bool = False
    metavar: str | None = None
    show_default: bool | str = True
    hint: str | None = None
    aliases: tuple[str, ...] = ()
    positional: bool = False
    hidden: bool = False


def setting(default: Any, help: str, **info: Any) -> Any:
    """A dataclass field that is also an option of the command line.

    Args:
        default: may be a list (it is copied).
        info: further attributes of :class:`Setting`. Ranges are checked when the settings are built; a number
            must be finite whatever they say. ``panel`` overrides that of the class.
    """
    metadata = {_KEY: Setting(help, **info)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def required(help: str, hint: str, **info: Any) -> Any:
    """An option without a default: where it is missing, the user reads ``--option is needed: hint``."""
    return dataclasses.field(metadata={_KEY: Setting(help, hint=hint, **info)})


def flag_of(name: str) -> str:
    """The option of a field: ``min_lr`` -> ``--min-lr``."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings classes; checks the values of its fields, those of lists and tuples one by one."""

    panel: ClassVar[str | None] = None

    def __init_subclass__(cls, panel: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if panel is not None:
            cls.panel = panel

    def __post_init__(self) -> None:
        for name, info in settings_of(type(self)).items():
            value = getattr(self, name)
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, str):
                    _check_text(info, item, known_blank=info.blank or value == _default_of(type(self), name))
                elif isinstance(item, (int, float)) and not isinstance(item, bool):
                    _check_number(info, item)

    def changed(self: SettingsT, **values: Any) -> SettingsT:
        """A copy with some fields replaced (and checked again)."""
        return dataclasses.replace(self, **values)

    def flat(self) -> dict[str, Any]:
        """The value of every option by field name, those of groups too."""
        values = {name: getattr(self, name) for name in settings_of(type(self))}
        for name in groups_of(type(self)):
            # An option that two groups inherit has the value of the group that was given one.
            group: Settings = getattr(self, name)
            values |= {key: value for key, value in group.flat().items() if values.get(key) is None}
        return values

    def record(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """What a run writes to ``config.yaml``; given back with ``--config``, it repeats the run.

        How the run was started (``--resume``, ``--overwrite``) is not part of it.
        """
        values = {name: value for name, value in self.flat().items() if name not in _NOT_RECORDED}
        return {**values, ABOUT: dict(about)}

    @classmethod
    def from_flat(cls: type[SettingsT], values: Mapping[str, Any]) -> SettingsT:
        """The inverse of :meth:`flat`; what is left out has its default.

        Raises:
            VitcodError: for a name that is no option, a missing required option, or a value out of its range.
        """
        unknown = [name for name in values if name not in options_of(cls)]
        if unknown:
            raise VitcodError(f"{cls.__name__} has no option called {unknown[0]}.")
        arguments: dict[str, Any] = {}
        for name, info in settings_of(cls).items():
            if name in values:
                arguments[name] = values[name]
            if info.hint is not None and arguments.get(name) is None:
                raise VitcodError(f"{info.flag} is needed: {info.hint}")
        for name, group in groups_of(cls).items():
            own = options_of(group)
            arguments[name] = group.from_flat({key: value for key, value in values.items() if key in own})
        return cls(**arguments)

    def arguments(self, *, lasting: bool = False) -> list[str]:
        """The command line that gives these settings: everything that isn't the default.

        Args:
            lasting: as whoever starts afresh types it, without ``--resume`` and ``--overwrite``.
        """
        options = options_of(type(self))
        arguments: list[str] = []
        for name, value in self.flat().items():
            option = options[name]
            if lasting and name in _NOT_RECORDED:
                continue
            if option.default is dataclasses.MISSING or value != option.default:
                arguments += _as_arguments(option.info, value)
        return arguments


@dataclass(frozen=True)
class Option:
    """One option of a settings class and its groups: name and type of the field, default (or MISSING), info."""

    name: str
    type: Any
    default: Any
    info: Setting


@_per_class
def settings_of(cls: type[Settings]) -> dict[str, Setting]:
    """The class's own settings by field name, flag and panel filled in; groups are left out."""
    settings: dict[str, Setting] = {}
    for field in dataclasses.fields(cls):
        info: Setting | None = field.metadata.get(_KEY)
        if info is not None:
            flag = info.flag or (field.name.upper() if info.positional else flag_of(field.name))
            settings[field.name] = dataclasses.replace(info, flag=flag, panel=info.panel or cls.panel)
    return settings


@_per_class
def groups_of(cls: type[Settings]) -> dict[str, type[Settings]]:
    """The fields of ``cls`` that are settings classes themselves."""
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return {name: hints[name] for name in names if _is_settings(hints[name])}


@_per_class
def options_of(cls: type[Settings]) -> dict[str, Option]:
    """All options of ``cls``, then those of its groups, by field name.

    Raises:
        TypeError: when two of them have the same name.
    """
    hints, settings = get_type_hints(cls), settings_of(cls)
    options: dict[str, Option] = {}
    for field in dataclasses.fields(cls):
        if field.name in settings:
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            options[field.name] = Option(field.name, hints[field.name], default, settings[field.name])
    for group in groups_of(cls).values():
        for name, option in options_of(group).items():
            if options.setdefault(name, option) != option:  # the same one may be inherited by two groups
                raise TypeError(f"{cls.__name__} has several options called {name}")
    return options


@dataclass(frozen=True, kw_only=True)
class ResultSettings(Settings, panel="Output"):
    """How a command tells its result."""

    json: bool = setting(False, "Print the result as one JSON object.")


def _is_settings(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Settings)


def _as_arguments(info: Setting, value: Any) -> list[str]:
    if info.positional:
        return [str(item) for item in (value if isinstance(value, list) else [value])]
    if isinstance(value, bool):
        on, _, off = info.flag.partition("/")
        return [on] if value else [off or f"--no-{on.removeprefix('--')}"]
    if isinstance(value, list):
        together = all("=" in str(item) for item in value)  # as --model-kwargs depth=2 num_heads=4
        return [info.flag, *value] if value and together else [w for item in value for w in (info.flag, str(item))]
    if isinstance(value, tuple):
        return [info.flag, *map(str, value)]
    return [] if value is None else [info.flag, str(value)]


def _default_of(cls: type[Settings], name: str) -> Any:
    return cls.__dataclass_fields__[name].default


def _check_text(info: Setting, text: str, *, known_blank: bool) -> None:
    if not text.strip() and not known_blank:
        hint = f"is needed: {info.hint}" if info.hint else "is empty: give it a value, or leave it out."
        raise VitcodError(f"{info.flag} {hint}")
    if len(text) > LONGEST:
        raise VitcodError(f"{info.flag} is longer than {LONGEST} characters ({shown(text)}); shorten it.")
    if "\0" in text:
        raise VitcodError(f"{info.flag} {shown(text)} holds a NUL character; leave it out.")
    try:
        os.fsencode(text).decode()  # in an ASCII locale, any other letter is a surrogate, and no less a letter
    except UnicodeError:  # it could be written neither to config.yaml nor to a checkpoint
        raise VitcodError(f"{info.flag} {shown(text)} is not valid UTF-8; rename it.") from None


def _check_number(info: Setting, number: float) -> None:
    low, high = _limits(info, whole=isinstance(number, int))
    # "not (low <= number)" rather than "number < low": NaN must fail too.
    inside = (low is None or number >= low) and (info.above is None or number > info.above)
    inside = inside and (high is None or number <= high) and (info.below is None or number < info.below)
    if not inside or math.isnan(number):
        raise VitcodError(f"{info.flag} must be {_range_text(info, low, high, number)}, not {shown(number)}.")
    if 0 < abs(number) < SMALLEST:
        raise VitcodError(f"{info.flag} {number:g} is too small to compute with; take 0 or at least {SMALLEST:g}.")


def _limits(info: Setting, *, whole: bool) -> tuple[float | None, float | None]:
    """The inclusive bounds of an option, where it names none those of all numbers."""
    largest = MOST if whole else LARGEST
    low = -largest if info.minimum is None and info.above is None else info.minimum
    high = largest if info.maximum is None and info.below is None else info.maximum
    return low, high


def _range_text(info: Setting, low: float | None, high: float | None, number: float) -> str:
    """The range, without bounds that only keep nonsense out unless it is those that are broken."""
    if high is not None and high >= 1e6 and not number > high:
        high = None
    if low is not None and low <= -1e6 and not number < low:
        low = None
    return range_in_words(low, high, info.above, info.below) or "a number"


def range_in_words(
    low: float | None, high: float | None, above: float | None = None, below: float | None = None
) -> str:
    """``between 0 and 1``, ``above 0``, ``at least 0 and below 1``; empty without bounds."""
    if low is not None and high is not None:
        return f"between {_plain(low)} and {_plain(high)}"
    bounds = (("at least", low), ("above", above), ("at most", high), ("below", below))
    return " and ".join(f"{words} {_plain(bound)}" for words, bound in bounds if bound is not None)


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
