"""How Docker's list filters compare."""

from __future__ import annotations

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
