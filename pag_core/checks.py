"""Settings with declared limits; a bad value is rejected with an error that names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any


class SettingError(ValueError):
    """A value that PAG does not accept; the message gives the value and how to fix it."""


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise SettingError unless `value` is a number in [low, high]."""
    # NaN compares false to everything, and an integer too large for a float still compares.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise SettingError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}.")


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """Raise SettingError unless `value` is a whole number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingError(f"{name} must be a whole number from {low} to {high}, got {value!r}.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise SettingError unless `value` is one of `choices`."""
    if value not in choices:
        raise SettingError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def check_switch(name: str, value: bool) -> None:
    """Raise SettingError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise SettingError(f"{name} must be true or false, got {value!r}.")


def check_percent_range(start_name: str, start: float, end_name: str, end: float) -> None:
    """Raise SettingError unless 0 <= start < end <= 1; an empty range would silently turn the guidance off."""
    check_range(start_name, start, 0.0, 1.0)
    check_range(end_name, end, 0.0, 1.0)
    if start >= end:
        raise SettingError(f"{start_name} ({start:g}) must be smaller than {end_name} ({end:g}). Set the scale to 0 to "
                           f"turn the guidance off.")


@dataclass(frozen=True)
class Accepts:
    """What a field of a settings class accepts, stored as the field's metadata "accepts".

    Attributes:
        check: (name, value, *arguments) raises SettingError for anything else.
        arguments: (low, high) of a number, (choices,) of a choice, () of a switch.
    """

    check: Callable[..., None]
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
    """Raise SettingError for the first field of a dataclass with a value it does not accept."""
    for one in fields(settings):
        if accepts := one.metadata.get("accepts"):
            accepts.check(one.name, getattr(settings, one.name), *accepts.arguments)
