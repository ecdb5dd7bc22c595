"""What drivers take as a guest image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from portlayer.drivers import guest_image
from portlayer.errors import DriverError


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, object]:
    for name in ("vmlinuz", "initramfs"):
        (tmp_path / name).write_bytes(b"1234")
    sizes = {"vmlinuz": 4, "initramfs": 4}
    return {"digest": "sha256:1", "kernel_version": "6.1", "sizes": sizes, "platforms": ["virtio", "vmware"]}


def test_a_whole_image(tmp_path: Path, manifest: dict[str, object]) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    image = guest_image.GuestImage(tmp_path, "sha256:1", "6.1")
    assert guest_image.read(tmp_path) == guest_image.read(tmp_path, "virtio") == image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": {"vmlinuz": 4, "initramfs": 5}}, "initramfs is not of the size"),
        ({"platforms": ["vmware"]}, "has drivers for vmware, not for virtio"),
        ({"platforms": 1}, "no guest image"),
    ],
)
def test_what_would_not_boot(
    tmp_path: Path, manifest: dict[str, object], change: dict[str, object], message: str
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(DriverError, match=message):
        guest_image.read(tmp_path, "virtio")
