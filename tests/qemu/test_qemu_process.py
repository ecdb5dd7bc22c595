"""Finding, waiting for and ending processes, told apart from whoever got a recycled pid."""

# ruff: noqa: ASYNC220
from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from qemu_machines import PATIENCE_S, all_ended, descriptors

from portlayer.drivers.qemu import command, process
from portlayer.drivers.qemu.instance import Instance

MACHINE = "ab" * 32
# Stands for QEMU: writes its pid where QEMU would, and says so.
PROGRAM = """
import os, signal, sys
{extra}
open("qemu.pid.new", "w").write(str(os.getpid()))
os.rename("qemu.pid.new", "qemu.pid")
os.write(1, b"up\\n")
signal.pause()
"""


async def start(directory: Path, *, machine: str = MACHINE, extra: str = "") -> None:
    """Returns when the stand-in runs."""
    os.mkfifo(directory / "log")
    reader = os.open(directory / "log", os.O_RDWR)
    try:
        argv = [sys.executable, "-c", PROGRAM.format(extra=extra), "-name", command.machine_name(machine)]
        await process.spawn(argv, directory, directory / "log", ())
        assert await asyncio.to_thread(os.read, reader, 10) == b"up\n"
    finally:
        os.close(reader)


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path
    with process.running(tmp_path) as pidfd:
        if pidfd is not None:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)


async def test_found_waited_for_and_ended(directory: Path) -> None:
    await start(directory)
    pid = int((directory / "qemu.pid").read_text())
    assert os.getsid(pid) == pid  # survives its starter
    assert Path(f"/proc/{pid}/cwd").readlink() == directory
    with process.running(directory) as pidfd:
        assert pidfd is not None
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(process.wait_ended(pidfd)) for _ in range(3)]
            group.create_task(process.end(pidfd))
        assert all(wait.done() for wait in waits)
    assert not process.is_running(directory)


async def test_one_that_ignores_the_request_is_killed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_SECONDS", 0.05)
    await start(directory, extra="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    with process.running(directory) as pidfd:
        assert pidfd is not None
        await process.end(pidfd)


async def test_one_that_is_of_no_use_to_anybody_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port layer ends several clones that wait when it ends, and has little time for that."""
    monkeypatch.setattr(process, "_GRACE_SECONDS", 3600.0)
    (tmp_path / "clone").mkdir()
    await start(tmp_path / "clone", extra="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    async with asyncio.timeout(PATIENCE_S):
        await Instance(tmp_path / "clone", "a clone").remove()
    assert not (tmp_path / "clone").exists()
    await all_ended(tmp_path)


async def test_cancelled_wait_leaves_no_descriptor(directory: Path) -> None:
    await start(directory)
    before = descriptors()
    with process.running(directory) as pidfd:
        assert pidfd is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await process.wait_ended(pidfd)
    assert descriptors() <= before
    assert process.is_running(directory)


async def test_other_process_with_the_same_pid_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / "qemu.pid").write_text(str(stranger.pid))
        try:
            assert not process.is_running(tmp_path)
        finally:
            stranger.kill()


async def test_other_machine_is_not_this_one(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A guest's process that works elsewhere: the pid file alone proves nothing."""
    await start(directory)
    other = tmp_path_factory.mktemp("other")
    shutil.copy(directory / "qemu.pid", other)
    assert process.is_running(directory)
    assert not process.is_running(other)
    assert process.command_line(other) is None


async def test_found_again_after_its_directory_was_renamed(tmp_path: Path) -> None:
    """A clone becomes a container's by one rename."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    await start(before)
    before.rename(after)
    assert not process.is_running(before)
    with process.running(after) as pidfd:
        assert pidfd is not None
        await process.end(pidfd)
    assert not process.is_running(after)


async def test_what_works_below_a_directory_ends(tmp_path: Path) -> None:
    """Whatever it is and however deep it works, but nothing beside it."""
    root, beside = tmp_path / "root", tmp_path / "root-beside"
    (root / "deep").mkdir(parents=True)
    beside.mkdir()
    await start(root / "deep")
    (root / "deep" / "qemu.pid").unlink()
    await start(beside)
    await process.end_all_below(root)
    await all_ended(root)
    with process.running(beside) as pidfd:
        assert pidfd is not None
        await process.end(pidfd)


@pytest.mark.parametrize("content", ["", "x", "-1", "0", "99999999", "1" * 100])
def test_useless_pid_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "qemu.pid").write_text(content)
    assert not process.is_running(tmp_path)


def test_no_pid_file(tmp_path: Path) -> None:
    assert not process.is_running(tmp_path)


async def test_command_line_of_a_running_machine_alone(directory: Path) -> None:
    assert process.command_line(directory) is None
    await start(directory)
    argv = process.command_line(directory)
    assert argv is not None
    assert argv[argv.index("-name") + 1] == command.machine_name(MACHINE)
    with process.running(directory) as pidfd:
        assert pidfd is not None
        await process.end(pidfd)
    assert process.command_line(directory) is None


async def kept(file: Path, size: int) -> bytes:
    """The keeper's file once it has `size` bytes."""
    async with asyncio.timeout(PATIENCE_S):
        while file.stat().st_size < size:
            await asyncio.sleep(0.005)
    return file.read_bytes()


async def test_the_keeper_writes_at_once_and_no_more_than_its_limit(tmp_path: Path) -> None:
    """Byte by byte, as a serial port writes; then the keeper is gone and the writer is told."""
    limit = 300
    async with process.keeper(tmp_path, "console", limit) as pipe:
        for number in range(200):
            os.write(pipe, b"%d" % (number % 10))
            if number % 50 == 0:
                await kept(tmp_path / "console", number + 1)
        os.write(pipe, b"x" * 1000)
        assert await kept(tmp_path / "console", limit) == (b"0123456789" * 20) + b"x" * 100
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(BrokenPipeError):
                while True:
                    os.write(pipe, b"y")
                    await asyncio.sleep(0.005)
    assert (tmp_path / "console").stat().st_size == limit


async def test_the_keeper_ends_with_its_writer(tmp_path: Path) -> None:
    async with process.keeper(tmp_path, "console", 1000) as pipe:
        os.write(pipe, b"last words")
    assert await kept(tmp_path / "console", 10) == b"last words"
    await all_ended(tmp_path)
