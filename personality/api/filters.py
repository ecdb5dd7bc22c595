"""How Docker's list filters compare."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from personality.errors import DockerError

_TRUE = frozenset({"1", "t", "true"})
_FALSE = frozenset({"0", "f", "false"})


def truth(filters: Mapping[str, list[str]], name: str) -> bool | None:
    """A yes-or-no filter; None when it is not given. Raises DockerError 400 for anything else, or for both at once."""
    values = filters.get(name)
    if not values:
        return None
    words = {value.lower() for value in values}
    if words <= _TRUE:
        return True
    if words <= _FALSE:
        return False
    raise DockerError(400, f"invalid filter '{name}=[{' '.join(values)}]'")


def match_labels(wanted: Iterable[str], labels: Mapping[str, str]) -> bool:
    """Every "key" is there, and every "key=value" has that value."""
    return all(match_label(each, labels) for each in wanted)


def match_label(wanted: str, labels: Mapping[str, str]) -> bool:
    """One "key" or "key=value"."""
    key, separator, value = wanted.partition("=")
    return key in labels and (not separator or labels[key] == value)


def match_prefix(wanted: list[str] | None, *names: str) -> bool:
    """No filter, or one of its values begins one of `names`."""
    return not wanted or any(name.startswith(value) for value in wanted for name in names if value)


def match_exactly(wanted: list[str] | None, *names: str) -> bool:
    """No filter, or one of its values is one of `names`."""
    return not wanted or any(value in names for value in wanted)


def glob(pattern: str) -> re.Pattern[str]:
    """A shell pattern whose wildcards stop at slashes. Raises DockerError 400 when it is broken."""
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character in "*?":
            parts.append("[^/]*" if character == "*" else "[^/]")
        elif character == "\\" and position < len(pattern):
            parts.append(re.escape(pattern[position]))
            position += 1
        elif character == "[":
            end = pattern.find("]", position + 1)
            if end < 0:
                raise DockerError(400, f"invalid pattern '{pattern}': a bracket is not closed")
            parts.append(_character_class(pattern[position:end]))
            position = end + 1
        else:
            parts.append(re.escape(character))
    try:
        return re.compile("".join(parts))
    except re.error as error:
        raise DockerError(400, f"invalid pattern '{pattern}': {error}") from error


def _character_class(inside: str) -> str:
    negated = inside.startswith("^")
    members = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside.removeprefix("^"))
    return f"[{'^' if negated else ''}{members}]"
