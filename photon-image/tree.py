"""What goes where in the guest's initramfs, as entries for the archive."""

from __future__ import annotations

import importlib.metadata
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cpio
import elf
import globs
import lazy
from cpio import Entry
from declaration import Declaration, Package, Platform, Wheel
from errors import BuildError
from guest_python import GuestPython
from kernel import Kernel
from libraries import Libraries

_DIST_PACKAGES = "usr/lib/python3/dist-packages"
_AGENT_IMPORTS = ("tether.service", "tether.sandbox", "tether.usage", "tether.guestinfo")
_PASSWD = b"root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"


@dataclass(frozen=True)
class Inputs:
    """Everything that the tree is made from, besides the packages unpacked below `root`."""

    declaration: Declaration
    packages: tuple[Package, ...]
    python: str
    init: bytes
    agent: dict[str, bytes]
    wheels: dict[str, bytes]


def build(root: Path, inputs: Inputs, kernel: Kernel) -> dict[str, Entry]:
    """All entries of the initramfs."""
    entries = {path: cpio.directory(0o1777 if path == "tmp" else 0o755) for path in inputs.declaration.directories}
    entries |= {
        "dev/console": cpio.character_device(5, 1, 0o600),
        "dev/null": cpio.character_device(1, 3, 0o666),
        "dev/urandom": cpio.character_device(1, 9, 0o666),  # Python needs it before the agent mounts devtmpfs
        "etc/passwd": cpio.file(_PASSWD),
        "etc/group": cpio.file(_GROUP),
        "init": cpio.file(inputs.init, executable=True),
        "usr/bin/python3": cpio.symlink(f"python{inputs.python}"),
    }
    sources = inputs.agent | inputs.wheels
    python_files = {f"{_DIST_PACKAGES}/{path}": cpio.file(data) for path, data in sources.items()}
    for package in inputs.packages:
        python_files |= _package_files(root, package)
    kept = _without_excluded(python_files, inputs)
    libraries = Libraries(root).needed_by(kept)  # before the interpreter runs, which needs them too
    guest = GuestPython(root, inputs.python)
    entries |= _with_bytecode(kept, inputs, guest) | libraries
    guest.check_imports(_DIST_PACKAGES, entries, [*_AGENT_IMPORTS, *_imports(inputs.declaration)])
    return entries | _kernel_modules(kernel, inputs.declaration)


def _imports(declaration: Declaration) -> Iterator[str]:
    for wheel in declaration.wheels:
        yield from wheel.imports


def agent_files(repository: Path) -> dict[str, bytes]:
    """The agent's package and the generated stubs in it."""
    files = sorted((repository / "tether").rglob("*.py"))
    return {str(file.relative_to(repository)): file.read_bytes() for file in files}


def wheel_files(declaration: Declaration) -> tuple[dict[str, str], dict[str, bytes]]:
    """({name: version}, {path: contents}) of the declared distributions, from the environment that runs this."""
    versions: dict[str, str] = {}
    contents: dict[str, bytes] = {}
    for wheel in declaration.wheels:
        distribution = importlib.metadata.distribution(wheel.name)
        versions[wheel.name] = distribution.version
        for path in distribution.files or []:
            if globs.matches(str(path), wheel.files):
                contents[str(path)] = _wheel_file(Path(str(path.locate())), wheel)
    return versions, contents


def _wheel_file(file: Path, wheel: Wheel) -> bytes:
    data = file.read_bytes()
    if file.suffix == ".so" and wheel.unneeded_libraries:
        return elf.without_libraries(data, wheel.unneeded_libraries)
    return data


def _package_files(root: Path, package: Package) -> dict[str, Entry]:
    unused = set(package.files)
    found: dict[str, Entry] = {}
    for path in _walk(root):
        matching = {pattern for pattern in package.files if globs.matches(path, [pattern])}
        if matching:
            unused -= matching
            found[path] = _entry(root / path)
    if unused:
        raise BuildError(f"package {package.names[0]} lacks {', '.join(sorted(unused))}")
    return found


def _walk(root: Path) -> Iterator[str]:
    """Files and symbolic links, kernel and documentation aside."""
    for directory, _, files in os.walk(root):
        for name in files:
            path = str((Path(directory) / name).relative_to(root))
            if not path.startswith(("lib/modules", "usr/lib/modules", "boot", "usr/share")):
                yield path


def _entry(path: Path) -> Entry:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return cpio.symlink(str(path.readlink()))
    return cpio.file(path.read_bytes(), executable=bool(mode & stat.S_IXUSR))


def _without_excluded(files: dict[str, Entry], inputs: Inputs) -> dict[str, Entry]:
    """`files` without what is excluded of the standard library."""
    stdlib = f"usr/lib/python{inputs.python}/"
    excluded = inputs.declaration.stdlib_exclude
    return {
        path: entry
        for path, entry in files.items()
        if not (path.startswith(stdlib) and globs.matches(path.removeprefix(stdlib), excluded))
    }


def _with_bytecode(files: dict[str, Entry], inputs: Inputs, guest: GuestPython) -> dict[str, Entry]:
    """`files` with .pyc in the place of each .py."""
    sources = {path: entry.data for path, entry in files.items() if path.endswith(".py") and stat.S_ISREG(entry.mode)}
    compiled = guest.compile(lazy.with_stand_ins(sources, _lazy_paths(sources, inputs)))
    return {path: entry for path, entry in files.items() if not path.endswith(".py")} | {
        path: cpio.file(data) for path, data in compiled.items()
    }


def _lazy_paths(sources: dict[str, bytes], inputs: Inputs) -> frozenset[str]:
    found = set()
    for module in inputs.declaration.lazy:
        file = f"{module.replace('.', '/')}.py"
        candidates = [f"{_DIST_PACKAGES}/{file}", f"usr/lib/python{inputs.python}/{file}"]
        path = next((path for path in candidates if path in sources), None)
        if path is None:
            raise BuildError(f"there is no module {module} in the image")
        found.add(path)
    return frozenset(found)


def platforms(kernel: Kernel, declaration: Declaration) -> tuple[Platform, ...]:
    """The platforms that the kernel has everything for. Raises BuildError when there is none."""
    lacking = {platform: kernel.lacks((*platform.load, *platform.vsock)) for platform in declaration.platforms}
    if found := tuple(platform for platform, names in lacking.items() if not names):
        return found
    details = "; ".join(f"for {platform.name} {', '.join(names)}" for platform, names in lacking.items())
    raise BuildError(f"kernel {kernel.version} is complete for no platform: it lacks {details}")


def _kernel_modules(kernel: Kernel, declaration: Declaration) -> dict[str, Entry]:
    """The modules, and for the agent what to load when: etc/modules.WHAT[.PLATFORM], etc/platform.PLATFORM."""
    lists = {"load": declaration.modules_load, "vsock": declaration.modules_vsock}
    entries = {}
    for platform in platforms(kernel, declaration):
        lists |= {f"load.{platform.name}": platform.load, f"vsock.{platform.name}": platform.vsock}
        entries[f"etc/platform.{platform.name}"] = cpio.file(f"{platform.pci_vendor}\n".encode())
    for kind, names in lists.items():
        lines = "".join(f"{kernel.module_path(name)}\n" for name in kernel.load_order(names))
        entries[f"etc/modules.{kind}"] = cpio.file(lines.encode())
    lacking = kernel.lacks(declaration.modules_available)
    available = [name for name in declaration.modules_available if name not in lacking]
    for name in kernel.load_order([*(name for names in lists.values() for name in names), *available]):
        entries[f"lib/modules/{kernel.module_path(name)}"] = cpio.file(kernel.module_data(name))
    return entries
