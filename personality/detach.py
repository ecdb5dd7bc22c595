"""The keys by which somebody leaves a terminal without ending what runs in it."""

from __future__ import annotations

import re

from personality.errors import DockerError

DEFAULT = "ctrl-p,ctrl-q"
_CONTROL = re.compile(r"ctrl-([a-z@\[\\\]^_])")


def parse_keys(text: str) -> bytes:
    """ "ctrl-p,ctrl-q" or "ctrl-a,d" as the bytes that a terminal sends. Raises DockerError 400."""
    keys = bytearray()
    for word in (text or DEFAULT).split(","):
        if match := _CONTROL.fullmatch(word.lower()):
            keys.append(ord(match[1].upper()) & 0x1F)
        elif len(word) == 1 and word.isascii():
            keys += word.encode()
        else:
            raise DockerError(400, f"Unknown character: '{word}'")
    return bytes(keys)


class DetachScanner:
    """Watches what is typed for the keys. What might be their beginning is held back until it is not."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def scan(self, typed: bytes) -> tuple[bytes, bool]:
        """What is to be passed on, and whether the keys were pressed."""
        passed = bytearray()
        for byte in typed:
            if byte == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    return bytes(passed), True
                continue
            passed += self._keys[: self._matched]
            self._matched = 1 if byte == self._keys[0] else 0
            if not self._matched:
                passed.append(byte)
        return bytes(passed), False
