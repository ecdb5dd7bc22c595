"""What the driver's tests share. Real machines are booted only by tests marked vm."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from qemu_machines import all_ended

from portlayer.drivers.qemu import LocalDatastore, QemuDriver

REPOSITORY = Path(__file__).parents[2]
GUEST_IMAGE = REPOSITORY / "build" / "photon-image"


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """Deeper than a socket's path may be."""
    path = tmp_path / ("d" * 150)
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def guest_image() -> Path:
    """The image as `make` builds it; renewed here when the agent has changed."""
    sys.path.insert(0, str(REPOSITORY / "photon-image"))
    try:
        from sources import AptSource

        import build
    finally:
        sys.path.pop(0)
    cache = GUEST_IMAGE.parent / "photon-image-cache"
    with build.locked(cache):
        build.build(GUEST_IMAGE, AptSource(cache / "packages"), cache)
    return GUEST_IMAGE


@pytest.fixture
async def driver(state_dir: Path, guest_image: Path, tmp_path: Path) -> AsyncIterator[QemuDriver]:
    """An open driver with one image disk; nothing may be left of its machines at the end."""
    driver = QemuDriver(state_dir, guest_image, accelerator="tcg")
    await driver.open()
    disk = tmp_path / "image.squashfs"
    disk.write_bytes(bytes(1 << 20))
    await LocalDatastore(state_dir).put_image_disk("image.squashfs", disk)
    try:
        yield driver
    finally:
        for machine in await driver.list():
            await driver.destroy(machine)
        await driver.close()
        assert not list((state_dir / "machines").iterdir())
        await all_ended(state_dir)
