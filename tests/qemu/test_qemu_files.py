"""Sparse copies, durable writes, sockets below long paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qemu_machines import descriptors

from portlayer.drivers.qemu import files


def sparse_file(path: Path, pieces: dict[int, bytes], size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
    return path


def test_copy_keeps_holes(tmp_path: Path) -> None:
    source = sparse_file(tmp_path / "source", {0: b"head", 5 << 20: b"middle"}, 1 << 30)
    files.copy_sparse(source, tmp_path / "target")
    target = (tmp_path / "target").stat()
    assert target.st_size == 1 << 30
    assert target.st_blocks * 512 <= 64 << 10
    with source.open("rb") as old, (tmp_path / "target").open("rb") as new:
        assert new.read(6 << 20) == old.read(6 << 20)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pieces=st.dictionaries(st.integers(0, 200_000), st.binary(min_size=1, max_size=5000), max_size=6),
    tail=st.integers(0, 50_000),
)
def test_copy_is_exact(tmp_path_factory: pytest.TempPathFactory, pieces: dict[int, bytes], tail: int) -> None:
    directory = tmp_path_factory.mktemp("copy")
    size = max((offset + len(data) for offset, data in pieces.items()), default=0) + tail
    source = sparse_file(directory / "source", pieces, size)
    files.copy_sparse(source, directory / "target")
    assert (directory / "target").read_bytes() == source.read_bytes()


def test_copy_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    (tmp_path / "target").touch()
    with pytest.raises(FileExistsError):
        files.copy_sparse(tmp_path / "source", tmp_path / "target")


def test_failed_write_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record"
    files.write_durably(path, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_durably(path, b"new")
    assert path.read_bytes() == b"old"


def test_sockets_below_a_path_longer_than_the_kernel_takes(state_dir: Path) -> None:
    path = state_dir / "agent.sock"
    assert len(str(path)) > 108
    for _ in range(2):  # the second takes the place of the first
        with files.listen(path) as listener, files.connect(path) as client:
            accepted, _ = listener.accept()
            with accepted:
                client.send(b"hello")
                assert accepted.recv(10) == b"hello"
    assert path.stat().st_mode & 0o777 == 0o600


def test_connecting_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.connect(tmp_path / "agent.sock")
    files.listen(tmp_path / "agent.sock").close()
    with pytest.raises(ConnectionRefusedError):
        files.connect(tmp_path / "agent.sock")


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    before = descriptors()
    for _ in range(3):
        files.listen(tmp_path / "s").close()
        with pytest.raises(ConnectionRefusedError):
            files.connect(tmp_path / "s")
    assert descriptors() <= before
