"""A repository like Photon OS's, made of Debian's files: the same package names and layout, real kernels and programs.

What differs from Debian, as in Photon's packages: no multiarch directories, the loader in /lib64, modules compressed
by xz (but for a few that are loaded at boot), one package for the standard library, with site-packages in it; and the
kernel `linux-esx` knows neither virtio nor EROFS. What cannot be had: Photon's own kernel configuration, where drivers
are built in that are modules here.
"""

from __future__ import annotations

import contextlib
import lzma
import shutil
from collections.abc import Iterable
from pathlib import Path

import declaration
import rpm_repository
import selection
from errors import BuildError
from kernel import Kernel
from rpm_repository import Signer, root_with
from sources import AptSource

import build

_LIBRARIES = {
    "glibc": ("libc.so*", "libm.so*", "libdl.so*", "librt.so*", "libpthread.so*", "libnss_*"),
    "zlib": ("libz.so*",),
    "libffi": ("libffi.so*",),
    "expat-libs": ("libexpat.so*",),
}
# Directories of modules that one kernel or the other has; the rest of Debian's would only take time.
_MODULES = ("fs/squashfs", "fs/overlayfs", "fs/ext4", "fs/erofs", "crypto", "lib", "net/vmw_vsock", "drivers/block")
_MODULES += ("drivers/virtio", "drivers/misc", "drivers/scsi", "drivers/char", "drivers/net/vmxnet3")
_NOT_IN_ESX = ("virtio", "erofs")
_PLAIN = ("vmxnet3", "sd_mod")


def make(repository: Path, signer: Signer, debian: AptSource) -> None:
    """Downloads Debian's packages unless they are cached; signs and lists what it makes of them."""
    scratch = repository.parent / "photon-packages"
    source = scratch / "debian"
    _, chosen = selection.choose(declaration.read(build._DECLARED), debian)
    scratch.mkdir()
    debian.unpack(selection.resolve(chosen, debian), source)
    version = _python_version(source)
    roots = {
        "linux": (_kernel(source, scratch / "linux", "usr/lib/modules", ()), "6.1.192"),
        "linux-esx": (_kernel(source, scratch / "linux-esx", "lib/modules", _NOT_IN_ESX), "6.1.192"),
        "python3": (_python(source, scratch / "python3", version), version),
        "python3-libs": (_standard_library(source, scratch / "python3-libs", version), version),
        "tini-static": (_copied(source, scratch / "tini-static", "usr/bin/tini-static"), "0.19.0"),
    }
    for name, patterns in _LIBRARIES.items():
        roots[name] = (_libraries(source, scratch / name, patterns), "2.36")
    loader = next(source.glob("**/ld-linux-x86-64.so.2")).resolve()
    (scratch / "glibc/lib64").mkdir()
    shutil.copy(loader, scratch / "glibc/lib64/ld-linux-x86-64.so.2")
    files = [rpm_repository.package(repository, name, v, root) for name, (root, v) in roots.items()]
    signer.sign_packages(*files)
    rpm_repository.index(repository)
    shutil.rmtree(scratch)


def _python_version(source: Path) -> str:
    return next(source.glob("usr/bin/python3.[0-9]*")).name.removeprefix("python") + ".1"


def _kernel(source: Path, root: Path, modules: str, without: tuple[str, ...]) -> Path:
    kernel = Kernel(source)
    _copied(source, root, *(str(file.relative_to(source)) for file in source.glob("boot/*")))
    below = kernel.image.parents[1] / "lib/modules" / kernel.version
    if not below.is_dir():
        below = kernel.image.parents[1] / "usr/lib/modules" / kernel.version
    names = [file.name.partition(".")[0] for part in _MODULES for file in (below / "kernel" / part).rglob("*.ko*")]
    for name in _with_needs(kernel, names):
        if not any(word in name for word in without):
            target = root / modules / kernel.module_path(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            data = kernel.module_data(name)
            if name in _PLAIN:
                target.write_bytes(data)
            else:
                target.with_name(f"{target.name}.xz").write_bytes(lzma.compress(data, preset=0))
    for file in below.glob("modules.*"):
        shutil.copy(file, root / modules / kernel.version / file.name)
    return root


def _with_needs(kernel: Kernel, names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for name in names:
        with contextlib.suppress(BuildError):  # of those that need what is not in the package
            found.update(kernel.load_order([name]))
    return found


def _python(source: Path, root: Path, version: str) -> Path:
    program = f"python{version.rpartition('.')[0]}"
    _copied(source, root, f"usr/bin/{program}")
    (root / "usr/bin/python3").symlink_to(program)
    return root


def _standard_library(source: Path, root: Path, version: str) -> Path:
    library = f"usr/lib/python{version.rpartition('.')[0]}"
    shutil.copytree(source / library, root / library, symlinks=True)
    return root_with(root, {f"{library}/site-packages/README.txt": "for others", f"{library}/__pycache__/os.pyc": ""})


def _libraries(source: Path, root: Path, patterns: tuple[str, ...]) -> Path:
    (root / "usr/lib").mkdir(parents=True)
    for pattern in patterns:
        for file in source.glob(f"**/x86_64-linux-gnu/{pattern}"):
            shutil.copy(file, root / "usr/lib" / file.name, follow_symlinks=False)
    return root


def _copied(source: Path, root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / path, root / path)
    return root
