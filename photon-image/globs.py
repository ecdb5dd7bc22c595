"""Globs over relative paths: `*` stays within a directory, `**` crosses them, `{a,b}` are alternatives."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

_TOKENS = re.compile(r"\*\*|\*|\?|\{[^}]*\}|.")


def matches(path: str, patterns: Iterable[str]) -> bool:
    return any(_compiled(pattern).fullmatch(path) for pattern in patterns)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("".join(_translated(token) for token in _TOKENS.findall(pattern)))


def _translated(token: str) -> str:
    if token == "**":
        return ".*"
    if token == "*":
        return "[^/]*"
    if token == "?":
        return "[^/]"
    if token.startswith("{"):
        return "(?:" + "|".join(re.escape(part) for part in token[1:-1].split(",")) + ")"
    return re.escape(token)
