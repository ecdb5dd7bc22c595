"""The whole image, built twice from apt's packages. Needs apt's lists; downloads are shared with `make`."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import cpio
import pytest
from errors import BuildError
from sources import AptSource

import build

# Five builds, each of which waits for those of other workers.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CACHE = Path(__file__).parents[2] / "build" / "photon-image-cache"
MAXIMUM_BYTES = 30_000_000


def make(output: Path) -> dict[str, object]:
    with build.locked(CACHE):
        build.build(output, AptSource(CACHE / "packages"), CACHE)
    manifest: dict[str, object] = json.loads((output / "manifest.json").read_text())
    return manifest


def digests(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.iterdir()}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("image")
    make(output)
    return output


def test_same_inputs_same_bytes(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "42")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    old = os.umask(0o077)
    try:
        make(tmp_path / "again")
    finally:
        os.umask(old)
    assert digests(tmp_path / "again") == digests(image)


def test_nothing_is_done_when_nothing_changed(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (image / "initramfs").stat()
    monkeypatch.setattr(build.tree, "build", pytest.fail)
    make(image)
    assert (image / "initramfs").stat() == before


def test_a_damaged_image_is_made_again(image: Path, tmp_path: Path) -> None:
    for name in ("vmlinuz", "guest.iso", "manifest.json"):
        (tmp_path / name).write_bytes((image / name).read_bytes())
    (tmp_path / "initramfs").write_bytes(b"short")
    make(tmp_path)
    assert digests(tmp_path) == digests(image)


def test_size(image: Path) -> None:
    assert (image / "initramfs").stat().st_size <= MAXIMUM_BYTES


def test_manifest(image: Path) -> None:
    manifest = make(image)
    assert str(manifest["digest"]).startswith("sha256:")
    assert manifest["platforms"] == ["virtio", "vmware"]
    digest = hashlib.sha256((image / "guest.iso").read_bytes()).hexdigest()
    assert manifest["iso"] == {"file": "guest.iso", "sha256": digest}
    packages = manifest["packages"]
    assert isinstance(packages, list)
    assert all(package["version"] and len(package["sha256"]) == 64 for package in packages)
    assert set(manifest["wheels"]) == {"protobuf", "psutil"}  # type: ignore[call-overload]


def test_contents(image: Path) -> None:
    data = (image / "initramfs").read_bytes()
    for path in ("init", "usr/bin/tini-static", "usr/bin/python3", "etc/modules.load", "lib64/ld-linux-x86-64.so.2"):
        assert f"{path}\0".encode() in data
    assert b"dist-packages/tether/v1/tether_pb2.pyc\0" in data
    assert b"/idlelib" not in data


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(out: io.BytesIO, entries: dict[str, cpio.Entry]) -> None:
        raise BuildError("stopped")

    monkeypatch.setattr(build.cpio, "write", fail)
    with pytest.raises(BuildError, match="stopped"):
        make(tmp_path / "image")
    assert not (tmp_path / "image").exists()
