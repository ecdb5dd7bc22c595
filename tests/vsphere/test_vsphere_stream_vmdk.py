"""streamOptimized VMDKs, as QEMU reads them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from portlayer.drivers.vsphere.stream_vmdk import GRAIN, StreamVmdk

MIB = 1 << 20


def read_back(image: Path) -> tuple[bytes, int]:
    """The disk as QEMU reads it, and how many bytes were sent for it."""
    disk, sent, raw = StreamVmdk(image), image.with_suffix(".vmdk"), image.with_suffix(".raw")
    with image.open("rb") as source, sent.open("wb") as out:
        for piece in disk.pieces(source):
            assert len(piece) < 2 * MIB
            out.write(piece)
    assert sent.stat().st_size == disk.length
    command = ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(sent), str(raw)]
    subprocess.run(command, check=True, capture_output=True)
    assert raw.stat().st_size == disk.capacity
    return raw.read_bytes(), disk.length


@pytest.mark.parametrize("size", [0, 1, GRAIN, 5 * MIB // 2, 33 * MIB + 5])
def test_every_byte_is_there(tmp_path: Path, size: int) -> None:
    (image := tmp_path / "image").write_bytes(content := os.urandom(size))
    read, sent = read_back(image)
    assert read == content.ljust(len(read), b"\0")
    assert sent <= 1.01 * size + 2 * GRAIN


def test_what_is_zero_is_not_sent(tmp_path: Path) -> None:
    """Holes, zeros that are written, and pieces that do not end where grains do; in the third grain table of four."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.write(b"begin" + bytes(4 * MIB))
        file.seek(70 * MIB + 5000)
        file.write(b"x" * GRAIN)
        file.truncate(100 * MIB)
    read, sent = read_back(image)
    assert read == image.read_bytes()
    assert sent < 4 * GRAIN
