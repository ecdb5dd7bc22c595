"""The secrets by which a vMotion's destination proves that it carries on a port: who waits for whom.

The source host makes up a sequence, we add a secret, the destination presents both as one opaque cookie. The secret is
as long as that of VMware's own concentrator (github.com/vmware/vspc), so hosts take it, and too long to be guessed.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final, Generic, TypeVar

SECRET_BYTES: Final = 8

_T = TypeVar("_T")


class Migrations(Generic[_T]):
    """Ports (of whatever kind) by the cookies their destinations will present."""

    def __init__(self) -> None:
        # By digest: how long a look-up takes tells nothing about a cookie.
        self._expected: dict[bytes, _T] = {}

    def begin(self, sequence: bytes, port: _T) -> bytes:
        """A new cookie for `port`: the sequence and a secret."""
        cookie = sequence + secrets.token_bytes(SECRET_BYTES)
        self._expected[_digest(cookie)] = port
        return cookie

    def find(self, cookie: bytes) -> _T | None:
        """Whose cookie this is."""
        return self._expected.get(_digest(cookie))

    def end(self, cookie: bytes) -> None:
        """The cookie is void. No effect when it is already."""
        self._expected.pop(_digest(cookie), None)


def _digest(cookie: bytes) -> bytes:
    return hashlib.sha256(cookie).digest()
