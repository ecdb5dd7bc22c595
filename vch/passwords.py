"""The password of the account on vSphere: where it comes from, and how child processes get it.

It is never in an argument, an environment that is passed on, a log, or the state of the VCH.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from vch.errors import ConfigurationError
from vch.vsphere_options import Vsphere

VARIABLE: Final = "VCH_PASSWORD"
MAX_BYTES: Final = 4096


def find(vsphere: Vsphere, file: Path | None = None) -> str:
    """From `file` or the one that was said before, the environment or the terminal. ConfigurationError without any."""
    file = file or vsphere.password_file
    if file is not None:
        return _checked(_read(file), str(file))
    if from_environment := os.environ.get(VARIABLE):
        return _checked(from_environment, f"${VARIABLE}")
    if not sys.stdin.isatty():
        raise ConfigurationError(
            f"no password for {vsphere.target}: give --password-file, set {VARIABLE}, or use a terminal"
        )
    return _checked(str(click.prompt(f"Password of {vsphere.target}", hide_input=True, err=True)), "what was typed")


def from_descriptor(descriptor: int) -> str:
    """What `filled_pipe` of the parent has in it."""
    with os.fdopen(descriptor, "rb") as pipe:
        return _checked(pipe.read(MAX_BYTES + 1).decode(), "the parent process")


@contextmanager
def filled_pipe(password: str | None) -> Iterator[tuple[int, ...]]:
    """Yields the descriptor of a pipe for a child to read the password from; nothing without a password."""
    if password is None:
        yield ()
        return
    read, write = os.pipe()
    try:
        with os.fdopen(write, "wb") as pipe:
            pipe.write(password.encode())  # fits: a pipe holds more than any password may have
        yield (read,)
    finally:
        os.close(read)


def password_arguments(descriptors: tuple[int, ...]) -> list[str]:
    """How a child is told of them."""
    return [word for descriptor in descriptors for word in ("--password-fd", str(descriptor))]


def environment() -> dict[str, str]:
    """This process's, without the password: for child processes, which pass theirs on."""
    return {name: value for name, value in os.environ.items() if name != VARIABLE}


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES + 2).decode().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the password file {file} is not readable: {error}") from error


def _checked(text: str, source: str) -> str:
    if not text or len(text.encode()) > MAX_BYTES:
        raise ConfigurationError(f"the password from {source} is empty or longer than {MAX_BYTES} bytes")
    return text
