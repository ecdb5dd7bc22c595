"""Signals as Docker's clients name them."""

from __future__ import annotations

import re
import signal

from personality.errors import DockerError

_NUMBER = re.compile(r"\d{1,3}", re.ASCII)
_REAL_TIME = re.compile(r"RT(MIN|MAX)([+-]\d{1,2})?")
_FIRST_REAL_TIME, _LAST = 34, 64


def parse_signal(text: str) -> int:
    """Number of "SIGTERM", "term", "15" or "RTMIN+3". Raises DockerError 400."""
    name = text.strip().upper().removeprefix("SIG")
    number = 0
    if _NUMBER.fullmatch(name):
        number = int(name)
    elif match := _REAL_TIME.fullmatch(name):
        number = (_FIRST_REAL_TIME if match[1] == "MIN" else _LAST) + int(match[2] or 0)
        number = number if number >= _FIRST_REAL_TIME else 0
    elif f"SIG{name}" in signal.Signals.__members__:
        number = int(signal.Signals[f"SIG{name}"])
    if not 1 <= number <= _LAST:
        raise DockerError(400, f"invalid signal: {text}")
    return number


def signal_name(number: int) -> str:
    """ "SIGTERM" for 15."""
    if number >= _FIRST_REAL_TIME:
        return "SIGRTMIN" if number == _FIRST_REAL_TIME else f"SIGRTMIN+{number - _FIRST_REAL_TIME}"
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
