"""Modules that others import as a matter of course and the agent never, or hardly ever, uses.

Importing them takes much of the agent's start under emulation. Each is in the image under another name, and a stand-in
takes its place: whatever is asked of that loads the real module and comes from there, so nothing is missing.
"""

from __future__ import annotations

_PREFIX = "_whole_"
_STAND_IN = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    import sys
    package, dot, own = __name__.rpartition(".")
    real = package + dot + "{prefix}" + own
    __import__(real)
    value = getattr(sys.modules[real], name)
    globals()[name] = value
    return value
"""


def with_stand_ins(sources: dict[str, bytes], modules: frozenset[str]) -> dict[str, bytes]:
    """Python sources by path, with stand-ins for those that are named in `modules`."""
    result = {}
    for path, source in sources.items():
        if path in modules:
            directory, _, name = path.rpartition("/")
            result[f"{directory}/{_PREFIX}{name}"] = source
            result[path] = _STAND_IN.format(prefix=_PREFIX).encode()
        else:
            result[path] = source
    return result
