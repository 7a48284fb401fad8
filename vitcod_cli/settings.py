"""Hyper-parameters as frozen dataclasses: one definition gives the flag, its help, default and range.

A settings class is a frozen, keyword-only dataclass that derives from :class:`Settings` and whose
fields are made with :func:`setting`. The command line expands it into options (see
``cli/options.py``), so that an option is spelled, explained and checked alike everywhere.
Nothing here imports torch, timm or Typer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vitcod_cli.errors import VitcodError

_KEY = "setting"


@dataclass(frozen=True)
class SettingInfo:
    """What the command line needs to know of one field, beside its type and default."""

    help: str
    flag: str
    panel: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    metavar: str | None = None
    show_default: bool | str = True


def flag_of(name: str) -> str:
    """The option of a field: ``min_lr`` -> ``--min-lr``."""
    return "--" + name.replace("_", "-")


def setting(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    panel: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    metavar: str | None = None,
    show_default: bool | str = True,
) -> Any:
    """A dataclass field that is also a command-line option.

    ``minimum`` and ``maximum`` are inclusive and checked when the settings are built.
    ``panel`` overrides the help panel of the class. ``default`` may be a list (it is copied).
    """
    info = SettingInfo(help, flag or "", panel, minimum, maximum, metavar, show_default)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={_KEY: info})
    return dataclasses.field(default=default, metadata={_KEY: info})


def setting_info(field: dataclasses.Field[Any]) -> SettingInfo | None:
    """The :class:`SettingInfo` of a field made with :func:`setting`, its flag filled in, else None."""
    info: SettingInfo | None = field.metadata.get(_KEY)
    if info is None:
        return None
    return dataclasses.replace(info, flag=info.flag or flag_of(field.name))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings classes; checks the ranges of its fields."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            info, value = setting_info(field), getattr(self, field.name)
            if info is None or value is None or isinstance(value, (str, bool, list)):
                continue
            low, high = info.minimum, info.maximum
            # "not (low <= value)" rather than "value < low": NaN must fail too.
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                raise VitcodError(f"{info.flag} must be {_range_in_words(low, high)}, not {value}.")

    def changed(self, **values: Any) -> Any:
        """A copy with some fields replaced (and checked again)."""
        return dataclasses.replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name, for ``config.yaml``."""
        return dataclasses.asdict(self)


def _range_in_words(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"between {low:g} and {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}"
