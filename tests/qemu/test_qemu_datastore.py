"""Image disks in a directory."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from portlayer.drivers.qemu import LocalDatastore
from portlayer.errors import ExhaustedError, InvalidArgumentError, NotFoundError


@pytest.fixture
def datastore(tmp_path: Path) -> LocalDatastore:
    return LocalDatastore(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"x" * 4096)
    return path


async def test_life_of_a_disk(datastore: LocalDatastore, source: Path) -> None:
    assert not await datastore.has_image_disk("a")
    await datastore.put_image_disk("a", source)
    assert not source.exists()
    assert await datastore.has_image_disk("a")
    assert await datastore.image_disk_bytes("a") == 4096
    assert await datastore.free_bytes() > 0
    await datastore.remove_image_disk("a")
    await datastore.remove_image_disk("a")
    assert not await datastore.has_image_disk("a")
    with pytest.raises(NotFoundError):
        await datastore.image_disk_bytes("a")


async def test_first_one_stays(datastore: LocalDatastore, source: Path, tmp_path: Path) -> None:
    await datastore.put_image_disk("a", source)
    second = tmp_path / "second"
    second.write_bytes(b"")
    await datastore.put_image_disk("a", second)
    assert await datastore.image_disk_bytes("a") == 4096
    assert not second.exists()


@pytest.mark.parametrize("name", ["", "../a", ".hidden", "a/b", "a" * 300, "a\n"])
async def test_names_cannot_leave_the_directory(datastore: LocalDatastore, source: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await datastore.put_image_disk(name, source)
    assert source.exists()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSPC])
async def test_rename_that_fails(
    datastore: LocalDatastore, source: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self == source:
            raise OSError(code, "no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    if code == errno.EXDEV:
        await datastore.put_image_disk("a", source)
        assert await datastore.image_disk_bytes("a") == 4096
        assert not source.exists()
    else:
        with pytest.raises(ExhaustedError):
            await datastore.put_image_disk("a", source)
        assert not await datastore.has_image_disk("a")
