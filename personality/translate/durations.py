"""Durations in the words that `docker ps` uses."""

from __future__ import annotations

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def human(seconds: float) -> str:
    """ "5 seconds", "About an hour", "3 weeks": the steps of Docker's units package."""
    whole = int(seconds)
    hours = int(seconds / _HOUR + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole < _MINUTE:
        return "1 second" if whole == 1 else f"{whole} seconds"
    if whole < _HOUR:
        return "About a minute" if whole < 2 * _MINUTE else f"{whole // _MINUTE} minutes"
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    for name, length, limit in (("days", 24, 24 * 14), ("weeks", 168, 24 * 60), ("months", 720, 24 * 730)):
        if hours < limit:
            return f"{hours // length} {name}"
    return f"{int(seconds / _DAY / 365)} years"
