"""What ran out, what was refused, and a QEMU that does not answer."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest
from qemu_machines import descriptors

from portlayer.drivers.qemu import failures, files, qmp
from portlayer.errors import DriverError, ExhaustedError


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, ExhaustedError), (errno.EDQUOT, ExhaustedError), (errno.EACCES, DriverError)]
)
def test_errors_of_the_system(code: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^creating machine x: "), failures.os_errors("creating machine x"):
        raise OSError(code, "")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("qemu: cannot set up guest memory 'pc.ram': Cannot allocate memory", ExhaustedError),
        ("qemu: Failed to get lock", DriverError),
        ("", DriverError),
    ],
)
def test_last_words_of_qemu(tmp_path: Path, words: str, kind: type[Exception]) -> None:
    (tmp_path / "qemu.log").write_text("old " * 1000 + words)
    error = failures.qemu_failure("starting", tmp_path / "qemu.log")
    assert type(error) is kind
    assert words in str(error)
    assert len(str(error)) < 3000


async def test_qemu_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "_TIMEOUT_SECONDS", 0.05)
    with files.listen(tmp_path / "qmp.sock"), pytest.raises(DriverError, match="does not answer"):
        await qmp.Monitor.open(tmp_path / "qmp.sock", str)


async def test_who_gives_up_connecting_to_qemu_leaves_no_socket(tmp_path: Path) -> None:
    """At whatever step of it."""
    for steps in range(6):
        with files.listen(tmp_path / "qmp.sock"):
            before = descriptors()
            opening = asyncio.create_task(qmp.Monitor.open(tmp_path / "qmp.sock", str))
            for _ in range(steps):
                await asyncio.sleep(0)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            assert descriptors() <= before


async def test_qemu_that_is_gone(tmp_path: Path) -> None:
    files.listen(tmp_path / "qmp.sock").close()
    with pytest.raises(DriverError, match="does not answer"):
        await qmp.Monitor.open(tmp_path / "qmp.sock", str)
