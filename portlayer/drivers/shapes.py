"""Sizes of templates."""

from __future__ import annotations

_MIB = 1 << 20
_SMALLEST = 256 * _MIB


def memory_of_template(memory_bytes: int) -> int:
    """The memory of the template whose clones carry machines of that size: 256 MiB doubled again and again.

    Few sizes make few templates. Memory that a guest does not use costs the host nothing but the guest's bookkeeping (a
    64th), which its clones share; what a container was promised is held by its control group (ADR 7).
    """
    size = _SMALLEST
    while size < memory_bytes:
        size *= 2
    return size
