"""Why a program could not be launched, and how the child tells its parent."""

from __future__ import annotations

from enum import IntEnum


class Step(IntEnum):
    """What was being done; the numbers are those of LaunchFailure.Step."""

    MOUNT = 1
    USER = 2
    WORKING_DIR = 3
    EXEC = 4
    SETUP = 5


class LaunchError(Exception):
    """`message` is for people, in the words that users of Docker know."""

    def __init__(self, step: Step, number: int, message: str) -> None:
        super().__init__(message)
        self.step = step
        self.number = number
        self.message = message

    def encode(self) -> bytes:
        """For the pipe between child and parent; short enough to be written at once."""
        return f"{int(self.step)} {self.number} {self.message}".encode("utf-8", "replace")[:4000]

    @classmethod
    def decode(cls, data: bytes) -> LaunchError:
        """The inverse of encode."""
        step, number, message = data.decode("utf-8", "replace").split(" ", 2)
        return cls(Step(int(step)), int(number), message)
