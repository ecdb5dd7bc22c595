"""Images for the tests of clones: a container image with Python, and a guest image whose agent does not reseed."""

from __future__ import annotations

import io
import json
import shutil
import stat
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What a container tells about itself that no other one may share.
FACTS_PROGRAM = """
import json, os, random, time, uuid
print(json.dumps({
    "getrandom": os.getrandom(16).hex(),
    "urandom": open("/dev/urandom", "rb").read(16).hex(),
    "uuid4": str(uuid.uuid4()),
    "kernel uuid": open("/proc/sys/kernel/random/uuid").read().strip(),
    "boot_id": open("/proc/sys/kernel/random/boot_id").read().strip(),
    "machine-id": open("/etc/machine-id").read().strip(),
    "random": random.random(),
    "hostname": os.uname().nodename,
    "clock": [time.time(), time.monotonic(), time.time()],
}))
"""


def python_archive() -> bytes:
    """For `docker import`: the guest image's own Python, and an empty /etc/machine-id."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, mode, data in _entries((ROOT / "build/photon-image/initramfs").read_bytes()):
            if name.startswith(("usr", "lib")) and not name.startswith("lib/modules"):
                tar.addfile(*_member(name, mode, data))
        tar.addfile(*_member("etc/machine-id", stat.S_IFREG | 0o644, b""))
    return archive.getvalue()


def without_reseed(guest_image: Path, target: Path) -> Path:
    """A guest image like the other, but its agent leaves the kernel's generator as the template had it."""
    shutil.copytree(guest_image, target)
    source = (ROOT / "tether/linux.py").read_text()
    changed = source.replace("def reseed(entropy: bytes) -> None:", "def reseed(entropy: bytes) -> None:\n    return\n")
    assert changed != source
    sys.path.insert(0, str(ROOT / "photon-image"))
    try:
        import cpio
    finally:
        sys.path.pop(0)
    with (target / "initramfs").open("ab") as initramfs:
        # The kernel unpacks one archive after the other. Python takes a source before the bytecode of that name.
        initramfs.write(bytes(-initramfs.tell() % 4))
        cpio.write(initramfs, {"usr/lib/python3/dist-packages/tether/linux.py": cpio.file(changed.encode())})
        size = initramfs.tell()
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["sizes"]["initramfs"] = size
    manifest["digest"] = "sha256:" + "0" * 64
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def shared(facts: list[dict[str, object]]) -> set[str]:
    """What at least two have in common that each should have for itself."""
    keys = facts[0].keys() - {"clock"}
    return {key for key in keys if len({str(one[key]) for one in facts}) < len(facts)}


def _member(name: str, mode: int, data: bytes) -> tuple[tarfile.TarInfo, io.BytesIO | None]:
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(mode)
    if stat.S_ISLNK(mode):
        member.type, member.linkname = tarfile.SYMTYPE, data.decode()
        return member, None
    if stat.S_ISDIR(mode):
        member.type = tarfile.DIRTYPE
        return member, None
    member.size = len(data)
    return member, io.BytesIO(data)


def _entries(archive: bytes) -> list[tuple[str, int, bytes]]:
    """Name, mode and data of what is in a "newc" archive."""
    found, position = [], 0
    while True:
        fields = [int(archive[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        begin = position + 110
        name = archive[begin : begin + name_size - 1].decode()
        if name == "TRAILER!!!":
            return found
        begin = -(-(begin + name_size) // 4) * 4
        found.append((name, mode, archive[begin : begin + size]))
        position = -(-(begin + size) // 4) * 4
