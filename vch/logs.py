"""Logs of a VCH: one file per part in the state directory, limited in size, and a readable copy on the terminal."""

from __future__ import annotations

import logging
from collections import deque
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

import click

_MAX_BYTES = 8 << 20
_KEPT = 3
_LAST_LINES = 8
_COLOURS = {"vch": "green", "portlayer": "cyan", "personality": "magenta"}


class PartLog:
    """Lines of one part; the parts write their own time stamps, so lines are kept as they come."""

    def __init__(self, state_dir: Path, part: str, *, echo: bool) -> None:
        self.last: deque[str] = deque(maxlen=_LAST_LINES)
        self.path = state_dir / f"{part}.log"
        self._part = part
        self._echo = echo
        self._handler = RotatingFileHandler(self.path, maxBytes=_MAX_BYTES, backupCount=_KEPT, encoding="utf-8")

    def write(self, line: str) -> None:
        """One line, without its end."""
        self.last.append(line)
        self._handler.emit(logging.makeLogRecord({"msg": "%s", "args": (line,)}))
        if self._echo:
            try:
                click.echo(f"{click.style(f'{self._part:<11}', fg=_COLOURS.get(self._part))} {line}", err=True)
            except OSError:  # the terminal is gone; the file goes on
                self._echo = False

    def say(self, text: str) -> None:
        """A line of the supervisor itself, with the time."""
        self.write(f"{datetime.now(UTC).astimezone():%Y-%m-%d %H:%M:%S} {text}")

    def close(self) -> None:
        """Flushes and closes the file."""
        self._handler.close()
