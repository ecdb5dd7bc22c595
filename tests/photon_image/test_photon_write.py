"""An image is there whole or not at all, whatever becomes of its build; and nothing of that build is left."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import build
from portlayer.drivers import guest_image
from portlayer.errors import DriverError

FORMER, NEW = b"former", b"newer"  # of different sizes, as kernels are


def write(output: Path, data: bytes) -> None:
    build._write(output, dict.fromkeys(build._FILES, data), {"inputs": data.decode(), "kernel_version": "6.1"})


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


def test_a_full_disk_leaves_the_former_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, FORMER)
    former, whole = contents(tmp_path), Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if "guest.iso" in self.name:
            whole(self, data[:1])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, NEW)
    assert contents(tmp_path) == former


@pytest.mark.parametrize("replaced", [0, 1, 2, 3])
def test_a_build_that_is_killed_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: int
) -> None:
    write(tmp_path, FORMER)
    replace, done = os.replace, []

    def killed(source: Path, target: Path) -> None:
        if len(done) == replaced:
            raise KeyboardInterrupt
        replace(source, target)
        done.append(target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        write(tmp_path, NEW)
    assert not build._is_current(tmp_path, FORMER.decode())
    with pytest.raises(DriverError, match="no guest image"):
        guest_image.read(tmp_path)
    write(tmp_path, NEW)
    assert guest_image.read(tmp_path).kernel_version == "6.1"


def test_what_killed_builds_left_is_removed(tmp_path: Path) -> None:
    cache, output = tmp_path / "cache", tmp_path / "image"
    left = [cache / "scratch-1/root", cache / "rpms/scratch-2", output / "scratch-3"]
    for directory in left:
        directory.mkdir(parents=True)
        (directory / "file").touch()
    (cache / "rpms/kept.rpm").touch()
    with build.locked(cache):
        assert sorted(path.name for path in cache.rglob("*")) == ["kept.rpm", "lock", "rpms"]
    write(output, NEW)
    assert sorted(contents(output)) == ["guest.iso", "initramfs", "manifest.json", "vmlinuz"]


@pytest.mark.parametrize("option", ["--cache", "--output"])
def test_a_place_that_cannot_be_written_to_is_named(
    tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    places = {"--cache": str(tmp_path / "cache"), "--output": str(tmp_path / "image")}
    places[option] = str(tmp_path / "file" / "below")
    monkeypatch.setattr(build, "build", lambda output, *_: write(output, NEW))
    monkeypatch.setattr("sys.argv", ["build.py", *(word for pair in places.items() for word in pair)])
    assert build.main() == 1
    assert "Not a directory" in caplog.text
    assert f"{places[option]} ({option})" in caplog.text
