"""Finds the handler for a method and a path."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from personality.errors import DockerError
from personality.http.messages import Handler

_PARAMETER = re.compile(r"\{(\w+)(?::([^}]+))?\}")


@dataclass(frozen=True)
class Route:
    """An endpoint: "/images/{name:.*}/json", where a parameter without an expression is one path segment."""

    method: str
    pattern: str
    handler: Handler


class Router:
    """The first route that matches wins, so exact paths go before patterns that also catch them."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = [(_compile(route.pattern), route) for route in routes]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route for a path (without version) and what its pattern caught; HEAD is served by GET's routes.

        Raises DockerError: 404 for an unknown path, 405 for a known one with another method.
        """
        wanted = {method, "GET"} if method == "HEAD" else {method}
        known = False
        for pattern, route in self._routes:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if route.method in wanted:
                return route, match.groupdict()
            known = True
        if known:
            raise DockerError(405, f"method {method} is not allowed for {path}")
        raise DockerError(404, "page not found")


def _compile(pattern: str) -> re.Pattern[str]:
    parts: list[str] = []
    end = 0
    for parameter in _PARAMETER.finditer(pattern):
        parts.append(re.escape(pattern[end : parameter.start()]))
        parts.append(f"(?P<{parameter[1]}>{parameter[2] or '[^/]+'})")
        end = parameter.end()
    parts.append(re.escape(pattern[end:]))
    return re.compile("".join(parts), re.DOTALL)
