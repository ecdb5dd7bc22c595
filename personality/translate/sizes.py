"""Sizes as people write them in options: "10m"."""

from __future__ import annotations

import re

from personality.errors import DockerError

_SIZE = re.compile(r"(\d{1,18})\s*([kmgt]?)i?b?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MAX_UINT64 = (1 << 64) - 1


def parse_size(text: str) -> int:
    """Bytes. Raises DockerError 400."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise DockerError(400, f"invalid size: '{text}'")
    return min(int(match[1]) * _UNITS[match[2].lower()], _MAX_UINT64)
