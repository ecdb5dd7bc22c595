"""A VCH whose parts are small fake programs; nothing of it may be left when a test ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vch_program import Program


@pytest.fixture
def vch(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path / "state")
    yield program
    left = program.processes()
    for process in left:
        process.kill()
    assert not left


@pytest.fixture
def up(vch: Program) -> Iterator[Program]:
    """A detached VCH that serves."""
    done = vch.run("up", "--detach")
    assert done.returncode == 0, done.stderr
    yield vch
    vch.run("down")
