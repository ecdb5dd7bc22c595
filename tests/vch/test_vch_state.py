"""Who holds a state directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vch import state
from vch.errors import AlreadyUpError
from vch.state import Running

HOLD = """
import pathlib, sys
from vch import state
with state.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def _running(pid: int) -> Running:
    return Running(
        pid=pid, started=1.0, name="red", hosts=("unix:///d",), grpc="unix:///g", parts={}, portlayer_arguments=("-x",)
    )


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds tmp_path."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_holder_is_known_by_its_process(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    assert state.holder(tmp_path) == other.pid
    with pytest.raises(AlreadyUpError, match="being started or ended"), state.hold(tmp_path):
        pass
    other.kill()
    other.wait()
    assert state.holder(tmp_path) is None
    with state.hold(tmp_path):
        pass


def test_record_is_believed_while_its_own_process_holds(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    state.publish(tmp_path, _running(os.getpid()))
    assert state.read(tmp_path) is None
    state.publish(tmp_path, _running(other.pid))
    assert state.read(tmp_path) == _running(other.pid)
    with pytest.raises(AlreadyUpError, match="VCH red is already up"), state.hold(tmp_path):
        pass
    other.kill()
    other.wait()
    assert state.read(tmp_path) is None
    assert state.read_last(tmp_path) == _running(other.pid)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"hosts": 1, "portlayer_arguments": 2}'])
def test_broken_record_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert state.read_last(tmp_path) is None


def test_nothing_there(tmp_path: Path) -> None:
    assert state.holder(tmp_path / "none") is None
    assert state.read(tmp_path / "none") is None
    assert not state.has_machines(tmp_path / "none")
