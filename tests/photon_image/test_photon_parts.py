"""Globs, the kernel's modules, the choice among alternative packages, apt's answers."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import globs
import pytest
import selection
import tree
from backports import zstd
from declaration import Declaration, Package, Platform, read
from errors import BuildError
from guest_python import GuestPython
from kernel import Kernel
from sources import ResolvedPackage

import build

DECLARED = Path(build.__file__).parent / "packages.toml"


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    [
        ("a/b.py", "a/*.py", True),
        ("a/c/b.py", "a/*.py", False),
        ("a/c/b.py", "a/**", True),
        ("lib/x.so", "{,usr/}lib/x.so", True),
        ("usr/lib/x.so", "{,usr/}lib/x.so", True),
        ("aXpy", "a.py", False),
    ],
)
def test_globs(path: str, pattern: str, expected: bool) -> None:
    assert globs.matches(path, [pattern]) is expected


def signed(body: bytes) -> bytes:
    signature = b"S" * 300
    return body + signature + bytes(8) + len(signature).to_bytes(4, "big") + b"~Module signature appended~\n"


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.1").touch()
    modules = tmp_path / "lib/modules/6.1"
    (modules / "kernel/fs").mkdir(parents=True)
    (modules / "modules.builtin").write_text("kernel/fs/built-in.ko\n")
    (modules / "kernel/fs/base.ko").write_bytes(signed(b"ELF\0depends=\0name=base\0"))
    (modules / "kernel/fs/mid-dle.ko.xz").write_bytes(lzma.compress(b"ELF\0depends=base,built_in\0"))
    (modules / "kernel/fs/top.ko").write_bytes(b"ELF\0depends=mid_dle\0softdep=pre: base nowhere\0")
    (modules / "kernel/fs/broken.ko").write_bytes(b"ELF\0depends=missing\0")
    return Kernel(tmp_path)


def test_modules_come_after_what_they_need(kernel: Kernel) -> None:
    assert kernel.load_order(["top", "built-in"]) == ["base", "mid_dle", "top"]


def test_modules_are_plain_in_the_image(kernel: Kernel) -> None:
    assert kernel.module_data("base") == b"ELF\0depends=\0name=base\0"
    assert kernel.module_data("mid_dle") == b"ELF\0depends=base,built_in\0"
    assert kernel.module_path("mid_dle") == "6.1/kernel/fs/mid-dle.ko"


@pytest.mark.parametrize(
    ("suffix", "compress"), [("", bytes), (".xz", lzma.compress), (".zst", zstd.compress), (".gz", gzip.compress)]
)
def test_modules_are_decompressed(kernel: Kernel, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    file = kernel.image.parents[1] / f"lib/modules/6.1/kernel/one.ko{suffix}"
    file.write_bytes(compress(signed(b"ELF\0depends=\0")))
    again = Kernel(kernel.image.parents[1])
    assert again.load_order(["one"]) == ["one"]
    assert again.module_path("one") == "6.1/kernel/one.ko"
    assert again.module_data("one") == b"ELF\0depends=\0"


@pytest.mark.parametrize("suffix", [".xz", ".zst", ".gz", ".unknown"])
def test_damaged_modules_are_named(kernel: Kernel, suffix: str) -> None:
    file = kernel.image.parents[1] / f"lib/modules/6.1/kernel/one.ko{suffix}"
    file.write_bytes(b"nonsense")
    with pytest.raises(BuildError, match=f"module one.ko{suffix} cannot be read"):
        Kernel(kernel.image.parents[1]).load_order(["one"])


@pytest.mark.parametrize("name", ["unknown", "broken"])
def test_missing_module_is_an_error(kernel: Kernel, name: str) -> None:
    with pytest.raises(BuildError):
        kernel.load_order([name])


def test_what_a_kernel_lacks(kernel: Kernel) -> None:
    assert kernel.lacks(["top", "built-in", "unknown", "broken"]) == ["unknown", "broken"]


def declared_with(**platforms: tuple[str, ...]) -> Declaration:
    found = tuple(Platform(name, "0x1", load, ()) for name, load in platforms.items())
    return replace(read(DECLARED), platforms=found, modules_load=("base",), modules_vsock=(), modules_available=("no",))


def test_a_kernel_may_be_for_one_platform_alone(kernel: Kernel) -> None:
    declared = declared_with(virtio=("unknown", "top"), vmware=("top",))
    assert [platform.name for platform in tree.platforms(kernel, declared)] == ["vmware"]
    entries = tree._kernel_modules(kernel, declared)
    assert entries["etc/modules.load.vmware"].data.splitlines()[-1] == b"6.1/kernel/fs/top.ko"
    assert entries["etc/platform.vmware"].data == b"0x1\n"
    assert not [path for path in entries if "virtio" in path or "unknown" in path]


def test_a_kernel_for_no_platform_is_an_error(kernel: Kernel) -> None:
    with pytest.raises(BuildError, match="for red unknown; for blue broken"):
        tree.platforms(kernel, declared_with(red=("unknown", "top"), blue=("broken",)))


def test_a_kernel_with_its_drivers_built_in(tmp_path: Path) -> None:
    """As Photon configures linux-esx: with all that VMware's machines need, nothing of virtio, and some modules."""
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.1").touch()
    modules = tmp_path / "lib/modules/6.1"
    built_in = ["scsi/vmw_pvscsi", "scsi/sd_mod", "net/vmxnet3/vmxnet3", "misc/vmw_balloon", "vsock/vsock"]
    built_in += ["vsock/vmw_vsock_vmci_transport", "vsock/vmw_vsock_virtio_transport_common", "fs/ext4/ext4"]
    for name in ("squashfs", "overlay", "ipv6", "af_packet"):
        file = modules / f"kernel/{name}.ko.xz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lzma.compress(b"ELF\0depends=\0"))
    (modules / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in built_in))
    declared, kernel = read(DECLARED, "photon"), Kernel(tmp_path)
    entries = tree._kernel_modules(kernel, declared)
    assert [platform.name for platform in tree.platforms(kernel, declared)] == ["vmware"]
    assert entries["etc/modules.load.vmware"].data == b""
    lines = entries["etc/modules.load"].data.decode().splitlines()
    assert lines == [f"6.1/kernel/{name}.ko" for name in ("squashfs", "overlay", "ipv6", "af_packet")]


def test_libraries_are_tried_where_they_may_be_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the interpreter: a directory for temporary files often is mounted noexec."""
    used: list[str] = []
    monkeypatch.setattr(GuestPython, "_run", lambda self, root, doing, program, *arguments: used.extend(arguments))
    GuestPython(tmp_path / "root", "3.11").check_imports("usr/lib", {}, [])
    assert [Path(path).parents[2] for path in used] == [tmp_path]


class FakeSource:
    """Has the packages it is told to have."""

    remedy = "ask the maker"

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def available(self, names: Sequence[str]) -> set[str]:
        return self.names & set(names)

    def dependencies(self, name: str, pattern: str) -> list[str]:
        return []

    def resolve(self, names: Sequence[str]) -> list[ResolvedPackage]:
        return [ResolvedPackage(name, "1", f"{name}_1.deb", "0" * 64) for name in names]

    def unpack(self, packages: Sequence[ResolvedPackage], target: Path) -> None:
        target.mkdir(parents=True)


def names_for(declared: Declaration, python: str, kernel: str) -> set[str]:
    names = {package.for_python(python).names[0] for package in declared.packages if not package.kernel}
    return names | {kernel}


@pytest.mark.parametrize(("python", "kernel"), [("3.11", "linux-image-cloud-amd64"), ("3.12", "linux-image-virtual")])
def test_debian_and_ubuntu_are_served(python: str, kernel: str) -> None:
    declared = read(DECLARED)
    chosen, packages = selection.choose(declared, FakeSource(names_for(declared, python, kernel)))
    assert chosen == python
    assert {package.names for package in packages} >= {(kernel,), (f"python{python}-minimal",), ("libc6",)}


@pytest.mark.parametrize("kernel", ["linux-esx", "linux"])
def test_photon_is_served(kernel: str) -> None:
    declared = read(DECLARED, "photon")
    names = names_for(declared, "3.11", "linux-esx") | {"linux"}
    chosen, packages = selection.choose(declared, FakeSource(names), kernel)
    assert chosen == "3.11"
    assert [package.names for package in packages if package.kernel] == [(kernel,)]
    assert {package.names for package in packages} >= {("python3=3.11.*",), ("python3-libs=3.11.*",), ("glibc",)}


def test_a_kernel_that_is_not_there() -> None:
    declared = read(DECLARED, "photon")
    with pytest.raises(BuildError, match="not found: linux\n  ask the maker"):
        selection.choose(declared, FakeSource(names_for(declared, "3.11", "linux-esx")), "linux")


def test_what_is_missing_is_named() -> None:
    declared = read(DECLARED)
    names = names_for(declared, "3.11", "linux-image-virtual") - {"tini"}
    with pytest.raises(BuildError, match="not found: tini\n"):
        selection.choose(declared, FakeSource(names))


def test_meta_package_without_a_kernel() -> None:
    with pytest.raises(BuildError, match="depends on nothing"):
        selection.resolve([Package(("meta",), (), "linux-.*", True)], FakeSource({"meta"}))
