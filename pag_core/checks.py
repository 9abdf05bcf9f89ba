"""Settings with declared limits; a bad value is rejected with an error that names it."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any


class SettingError(ValueError):
    """A value that PAG does not accept; the message gives the value and how to fix it."""


def shown(value: object) -> str:
    """A value as error messages quote it, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def check_range(name: str, value: Any, low: float, high: float) -> float:
    """The value as a plain number; SettingError unless it is a number in [low, high]."""
    number = _plain(value)
    # NaN compares false to everything, and an integer too large for a float still compares.
    if not _is(number, numbers.Real) or not low <= number <= high:
        raise SettingError(f"{name} must be a number from {low:g} to {high:g}, got {shown(value)}.")
    return number if isinstance(number, int) else float(number)


def check_whole(name: str, value: Any, low: int, high: int) -> int:
    """The value as a plain integer; SettingError unless it is a whole number in [low, high]."""
    number = _plain(value)
    if not _is(number, numbers.Integral) or not low <= number <= high:
        raise SettingError(f"{name} must be a whole number from {low} to {high}, got {shown(value)}.")
    return int(number)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """The value; SettingError unless it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise SettingError(f"{name} must be one of {', '.join(choices)}; got {shown(value)}.")
    return value


def check_text(name: str, value: Any) -> str:
    """The value; SettingError unless it is text."""
    if not isinstance(value, str):
        raise SettingError(f"{name} must be text, got {shown(value)}.")
    return value


def check_switch(name: str, value: Any) -> bool:
    """The value; SettingError unless it is True or False."""
    switch = _plain(value)
    if not isinstance(switch, bool):
        raise SettingError(f"{name} must be true or false, got {shown(value)}.")
    return switch


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """The number in a scalar of numpy or torch, which other packs may pass on; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def check_percent_range(start_name: str, start: Any, end_name: str, end: Any) -> tuple[float, float]:
    """Both as plain numbers; SettingError unless 0 <= start < end <= 1; an empty range would silently turn the guidance
    off."""
    start, end = check_range(start_name, start, 0.0, 1.0), check_range(end_name, end, 0.0, 1.0)
    if start >= end:
        raise SettingError(f"{start_name} ({start:g}) must be smaller than {end_name} ({end:g}). Set the scale to 0 to "
                           f"turn the guidance off.")
    return start, end


@dataclass(frozen=True)
class Accepts:
    """What a field of a settings class accepts, stored as the field's metadata "accepts".

    Attributes:
        check: (name, value, *arguments) -> what the field keeps; SettingError for a value it does not accept.
        arguments: (low, high) of a number, (choices,) of a choice, () of a switch.
    """

    check: Callable[..., Any]
    arguments: tuple


def number(default: float, low: float = 0.0, high: float = 1.0) -> Any:
    """A dataclass field for a number in [low, high]."""
    return field(default=default, metadata={"accepts": Accepts(check_range, (low, high))})


def whole(default: int, low: int, high: int) -> Any:
    """A dataclass field for a whole number in [low, high]."""
    return field(default=default, metadata={"accepts": Accepts(check_whole, (low, high))})


def choice(default: str, choices: tuple[str, ...]) -> Any:
    """A dataclass field for one of `choices`."""
    return field(default=default, metadata={"accepts": Accepts(check_choice, (choices,))})


def switch(default: bool) -> Any:
    """A dataclass field for True or False."""
    return field(default=default, metadata={"accepts": Accepts(check_switch, ())})


def check_fields(settings: Any) -> None:
    """Raise SettingError for the first field of a frozen dataclass with a value it does not accept, and make its
    numbers plain ones."""
    for one in fields(settings):
        if accepts := one.metadata.get("accepts"):
            value = accepts.check(one.name, getattr(settings, one.name), *accepts.arguments)
            object.__setattr__(settings, one.name, value)
