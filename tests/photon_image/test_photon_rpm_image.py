"""The whole image from a repository like Photon OS's: built from a lock file, and booted without virtio."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import photon_packages
import pytest
import rpm_repository
from photon_machines import PATIENCE_S, cd_options, make_disks, start_request, take, vmware_machine
from sources import AptSource

import build

# Builds wait for those of other workers.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CACHE = Path(__file__).parents[2] / "build" / "photon-image-cache"


@dataclass(frozen=True)
class Photon:
    """A repository, its key, and what builds of it share."""

    directory: Path
    key: Path

    def build(self, name: str, *options: str) -> Path:
        """Runs the program; the directory of the image."""
        output, words = self.directory / name, ["--source", "photon", "--gpg-key", str(self.key)]
        words += ["--lock", str(self.directory / f"{name}.lock"), "--cache", str(self.directory / "cache")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["build.py", "--output", str(output), *words, *options])
            assert build.main() == 0
        return output

    @property
    def repository(self) -> tuple[str, str]:
        return ("--repository", (self.directory / "repository").as_uri())


@pytest.fixture(scope="module")
def photon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Photon]:
    directory = tmp_path_factory.mktemp("photon")
    (directory / "repository").mkdir()
    with rpm_repository.signer() as vendor:
        with build.locked(CACHE):
            photon_packages.make(directory / "repository", vendor, AptSource(CACHE / "packages"))
        yield Photon(directory, vendor.key)


@pytest.fixture(scope="module")
def esx_image(photon: Photon) -> Path:
    return photon.build("linux-esx", "--kernel", "linux-esx", "--renew-lock", *photon.repository)


def manifest_of(image: Path) -> dict[str, object]:
    manifest: dict[str, object] = json.loads((image / "manifest.json").read_text())
    return manifest


def paths(image: Path) -> set[str]:
    listed = subprocess.run(
        ["cpio", "--list", "--quiet"], input=(image / "initramfs").read_bytes(), capture_output=True, check=True
    )
    return set(listed.stdout.decode().split())


def names_of_modules(image: Path) -> set[str]:
    return {path.rpartition("/")[2].removesuffix(".ko") for path in paths(image) if path.endswith(".ko")}


def test_the_kernel_of_esx_is_for_its_machines_alone(esx_image: Path) -> None:
    manifest = manifest_of(esx_image)
    assert (manifest["source"], manifest["platforms"]) == ("photon", ["vmware"])
    assert names_of_modules(esx_image) >= {"vmw_pvscsi", "vmxnet3", "sd_mod", "squashfs", "overlay"}
    assert not any("virtio" in name for name in names_of_modules(esx_image))


def test_the_other_kernel_is_for_both(photon: Photon) -> None:
    image = photon.build("linux", "--kernel", "linux", "--renew-lock", *photon.repository)
    assert set(manifest_of(image)["platforms"]) == {"virtio", "vmware"}  # type: ignore[call-overload]
    assert names_of_modules(image) >= {"vmw_pvscsi", "vmxnet3", "virtio_pci", "virtio_blk", "virtio_console"}


def test_what_is_in_it_is_what_is_locked(photon: Photon, esx_image: Path) -> None:
    lock = (photon.directory / "linux-esx.lock").read_text()
    packages = manifest_of(esx_image)["packages"]
    assert isinstance(packages, list)
    assert {package["name"] for package in packages} >= {"linux-esx", "glibc", "python3", "python3-libs", "tini-static"}
    assert "linux" not in {package["name"] for package in packages}
    assert lock.count("[[package]]") == len(packages)
    assert all(package["sha256"] in lock and package["version"] in lock for package in packages)


def test_nothing_is_taken_that_is_not_needed(esx_image: Path) -> None:
    found = paths(esx_image)
    assert not {path for path in found if "site-packages" in path or "__pycache__" in path or "libnss" in path}
    assert {"lib64/ld-linux-x86-64.so.2", "usr/bin/python3", "usr/bin/tini-static"} <= found


def test_the_lock_file_gives_the_same_bytes_without_a_repository(photon: Photon, esx_image: Path) -> None:
    lock = photon.directory / "again.lock"
    lock.write_bytes((photon.directory / "linux-esx.lock").read_bytes())
    again = photon.build("again", "--kernel", "linux-esx")
    for name in ("vmlinuz", "initramfs", "guest.iso", "manifest.json"):
        assert (again / name).read_bytes() == (esx_image / name).read_bytes()


def test_the_cache_holds_nothing_but_packages(photon: Photon, esx_image: Path) -> None:
    """Which are checked at each build: whoever else writes there gets nothing into an image."""
    files = [path for path in (photon.directory / "cache").rglob("*") if path.is_file()]
    assert {path.suffix for path in files if path.name != "lock"} == {".rpm"}


@pytest.mark.vm
async def test_it_runs_a_container_on_a_machine_without_virtio(esx_image: Path, tmp_path: Path) -> None:
    """From its CD, on disks of a PVSCSI adapter: all drivers come out of the package's compressed modules."""
    disks = make_disks(tmp_path)
    async with vmware_machine(tmp_path / "vm", cd_options(esx_image / "guest.iso"), disks) as machine:
        await machine.agent.hello(timeout_s=PATIENCE_S)
        words = ("sh", "-c", "echo kept > /kept; cat /kept; ls /sys/class/net; grep -c virtio /proc/modules")
        answer = await machine.agent.start(start_request(*words), timeout_s=PATIENCE_S)
        assert not answer.HasField("failure"), answer
        output, _ = await take(machine.agent.follow("init", 0))
        assert output.split() == [b"kept", b"eth0", b"lo", b"0"]
        await machine.process.wait()
