"""Which endpoints are up: each from the first measure that needs it to the last, so that none idles beside others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType

from bench.endpoints import Endpoint, EndpointError

Opener = Callable[[], AbstractContextManager[Endpoint]]


class Lineup:
    """A context manager that ends what is still up."""

    def __init__(self, openers: Mapping[str, Opener], prepare: Callable[[Endpoint], None]) -> None:
        """`prepare` is done with each that is brought up; it may raise EndpointError, too."""
        self._openers = openers
        self._prepare = prepare
        self._up: dict[str, tuple[Endpoint, ExitStack]] = {}
        # What every endpoint is that was asked for, by name; for one that cannot be had, why.
        self.described: dict[str, str] = {}
        # Whose end failed, and how: something of them may be left.
        self.left: list[str] = []

    def __enter__(self) -> Lineup:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.keep(())

    def get(self, names: Iterable[str]) -> list[Endpoint]:
        """Those of `names` that can be had, in this order; one after another is brought up if it is not yet."""
        for name in names:
            if name in self._openers and name not in self.described:
                self._open(name)
        return [self._up[name][0] for name in names if name in self._up]

    def keep(self, names: Iterable[str]) -> None:
        """Ends all others, for good."""
        for name in set(self._up).difference(names):
            try:
                self._up.pop(name)[1].close()
            except EndpointError as error:
                self.left.append(f"{name} did not end: {error}")

    def _open(self, name: str) -> None:
        with ExitStack() as stack:
            try:
                endpoint = stack.enter_context(self._openers[name]())
                self._prepare(endpoint)
            except EndpointError as error:
                self.described[name] = f"not measured: {error}"
                return
            self.described[name] = endpoint.description
            self._up[name] = endpoint, stack.pop_all()
