"""A template's memory: nobody changes it once it is sealed, and it is kept whole."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qemu_machines import descriptors

from portlayer.drivers.qemu import files
from portlayer.drivers.qemu import memory as memories
from portlayer.drivers.qemu.memory import TemplateMemory

SIZE = 8 << 20
WORDS = b"what all clones are made of"
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01


@pytest.fixture
def memory() -> Iterator[TemplateMemory]:
    """Sealed, with words at its beginning and in its middle, and holes."""
    memory = TemplateMemory(SIZE)
    try:
        os.pwrite(memory.fd, WORDS, 0)
        os.pwrite(memory.fd, WORDS, SIZE // 2)
        memory.seal()
        yield memory
    finally:
        memory.close()


def content(fd: int) -> bytes:
    return os.pread(fd, SIZE + 1, 0)


def expected() -> bytes:
    data = bytearray(SIZE)
    data[: len(WORDS)] = WORDS
    data[SIZE // 2 : SIZE // 2 + len(WORDS)] = WORDS
    return bytes(data)


def punch(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).fallocate64(fd, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(4096)):
        raise OSError(ctypes.get_errno(), "fallocate")


CHANGES: dict[str, Callable[[int], object]] = {
    "write": lambda fd: os.pwrite(fd, b"scribble", 0),
    "write beyond the end": lambda fd: os.pwrite(fd, b"scribble", SIZE),
    "cut": lambda fd: os.ftruncate(fd, 4096),
    "grow": lambda fd: os.ftruncate(fd, SIZE * 2),
    "punch": punch,
    "map for writing": lambda fd: mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    "unseal": lambda fd: fcntl.fcntl(fd, memories._F_ADD_SEALS, 0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("again", [False, True], ids=["inherited", "opened again"])
def test_nobody_changes_it(memory: TemplateMemory, change: Callable[[int], object], again: bool) -> None:
    """Not by the descriptor that a QEMU inherits, nor by opening that anew, as QEMU does, with all rights."""
    fd = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDWR) if again else os.dup(memory.fd)
    try:
        with pytest.raises(OSError) as raised:  # noqa: PT011
            change(fd)
        assert raised.value.errno == errno.EPERM
    finally:
        os.close(fd)
    assert content(memory.fd) == expected()


def test_the_same_changes_take_effect_before_it_is_sealed() -> None:
    """So that the refusals above are the seal's."""
    for name, change in CHANGES.items():
        memory = TemplateMemory(SIZE)
        try:
            change(memory.fd)
        except OSError as error:
            pytest.fail(f"{name}: {error}")
        finally:
            memory.close()


def test_no_opening_empties_it(memory: TemplateMemory) -> None:
    with pytest.raises(PermissionError):
        os.open(f"/proc/self/fd/{memory.fd}", os.O_RDWR | os.O_TRUNC)
    assert content(memory.fd) == expected()


def test_a_clones_mapping_is_its_own(memory: TemplateMemory) -> None:
    with mmap.mmap(memory.fd, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        assert mapping[: len(WORDS)] == WORDS
        mapping[:] = b"x" * SIZE
        assert content(memory.fd) == expected()
        with mmap.mmap(memory.fd, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ) as next_one:
            assert next_one[:] == expected()


def test_a_mapping_outlives_the_descriptor() -> None:
    memory = TemplateMemory(SIZE)
    os.pwrite(memory.fd, WORDS, 0)
    memory.seal()
    with mmap.mmap(memory.fd, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapping:
        memory.close()
        assert mapping[: len(WORDS)] == WORDS


def test_no_seal_while_somebody_can_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a template's QEMU is not gone, there is no template."""
    memory = TemplateMemory(SIZE)
    try:
        with mmap.mmap(memory.fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE):
            with monkeypatch.context() as patch, pytest.raises(OSError) as raised:  # noqa: PT011
                patch.setattr(memories, "_SEAL_S", 0.0)
                memory.seal()
            assert raised.value.errno == errno.EBUSY
        memory.seal()
    finally:
        memory.close()


def test_kept_and_loaded_it_is_the_same(memory: TemplateMemory, tmp_path: Path) -> None:
    """Byte for byte and hole for hole, sealed again."""
    memory.save(tmp_path / "memory")
    about = (tmp_path / "memory").stat()
    assert about.st_size == SIZE
    assert stat.S_IMODE(about.st_mode) == 0o400
    assert about.st_blocks * 512 < SIZE // 4
    loaded = TemplateMemory.load(tmp_path / "memory")
    try:
        assert content(loaded.fd) == expected()
        assert loaded.resident_bytes == memory.resident_bytes < SIZE // 4
        with pytest.raises(PermissionError):
            os.pwrite(loaded.fd, b"scribble", 0)
    finally:
        loaded.close()


def test_it_is_kept_in_a_new_file_alone(memory: TemplateMemory, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"older")
    with pytest.raises(FileExistsError):
        memory.save(tmp_path / "memory")
    assert (tmp_path / "memory").read_bytes() == b"older"


def test_nothing_is_left_open_when_it_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory").write_bytes(bytes(4096))
    before = descriptors()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(files, "copy_data", full)
    with pytest.raises(OSError, match="no space"):
        TemplateMemory.load(tmp_path / "memory")
    assert descriptors() <= before
