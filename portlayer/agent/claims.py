"""What a guest says of itself, made fit to be shown: neither terminals nor our arithmetic are to suffer from it."""

from __future__ import annotations

import time

from tether.v1 import tether_pb2

# A century of CPU time; more is nonsense.
_MAX_CPU_NS = 100 * 366 * 86_400 * 1_000_000_000
_MAX_TEXT = 32 * 1024


def printable(text: str, limit: int = _MAX_TEXT) -> str:
    """Without control characters, which a terminal would obey; `?` in their place, as ps does."""
    cut = text[:limit]
    return cut if cut.isprintable() else "".join(one if one.isprintable() else "?" for one in cut)


def processes(answer: tether_pb2.ProcessesResponse) -> tether_pb2.ProcessesResponse:
    """The list with names that can be printed and times that can be reckoned with."""
    now_ns = time.time_ns()
    for process in answer.processes:
        for field in ("user", "terminal", "state", "name"):
            setattr(process, field, printable(getattr(process, field)))
        process.args[:] = [printable(argument) for argument in process.args]
        process.started_unix_ns = min(process.started_unix_ns, now_ns)
        process.cpu_ns = min(process.cpu_ns, _MAX_CPU_NS)
    return answer
