"""Times as Docker's API writes and reads them. Within the personality, a time is nanoseconds since 1970 UTC."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta

from personality.errors import DockerError

NEVER = "0001-01-01T00:00:00Z"

_SECOND_NS = 1_000_000_000
_LAST_NS = (1 << 63) - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_UNIT_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": _SECOND_NS,
    "m": 60 * _SECOND_NS,
    "h": 3600 * _SECOND_NS,
}

_UNIX = re.compile(r"(-?\d{1,12})(?:\.(\d{1,9}))?", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+", re.ASCII)
_DATE = re.compile(r"(\d{4}-\d\d-\d\d)(?:T(\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?)?(Z|[+-]\d\d:\d\d)?", re.ASCII)


def rfc3339(time_ns: int) -> str:
    """2022-02-04T21:20:12.497794809Z, without the fraction's trailing zeros; 0 is NEVER, as in Go."""
    if time_ns == 0:
        return NEVER
    seconds, nanoseconds = divmod(time_ns, _SECOND_NS)
    text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return f"{text}{fraction}Z"


def parse_time(text: str, parameter: str) -> int:
    """A moment as Docker's clients name it: seconds since 1970 ("1629574695.515"), a date ("2022-02-04T21:20:12Z", less
    its tail; without a zone, the host's), or a duration before now ("1h30m"). What 64 bits cannot hold (after 2262) is
    the last moment that they can.

    Raises DockerError 400, naming the query's `parameter`.
    """
    try:
        if match := _UNIX.fullmatch(text):
            return _within_64_bits(int(match[1]) * _SECOND_NS + _fraction_ns(match[2]))
        if _DURATION.fullmatch(text):
            return _within_64_bits(time.time_ns() - _duration_ns(text))
        if match := _DATE.fullmatch(text):
            return _within_64_bits(_date_ns(match))
    except (ValueError, OverflowError):
        pass
    raise DockerError(400, f'invalid value "{text}" for "{parameter}": neither a timestamp, nor a date, nor a duration')


def _within_64_bits(time_ns: int) -> int:
    return max(-_LAST_NS, min(time_ns, _LAST_NS))


def _fraction_ns(digits: str | None) -> int:
    return int((digits or "0").ljust(9, "0"))


def _duration_ns(text: str) -> int:
    return sum(int(float(number) * _UNIT_NS[unit]) for number, unit in _DURATION_PART.findall(text))


def _date_ns(match: re.Match[str]) -> int:
    day, hours, minutes, seconds, fraction, zone = match.groups()
    moment = datetime.fromisoformat(f"{day}T{hours or '00'}:{minutes or '00'}:{seconds or '00'}{zone or ''}")
    if zone is None:
        moment = moment.astimezone()
    since_epoch = moment - _EPOCH
    return (since_epoch.days * 86400 + since_epoch.seconds) * _SECOND_NS + _fraction_ns(fraction)
