"""The one error of the image builder: what failed, and what to do about it."""

from __future__ import annotations


class BuildError(Exception):
    """The image cannot be built. `hint` says what the person at the keyboard can do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}\n  {hint}" if hint else message)
