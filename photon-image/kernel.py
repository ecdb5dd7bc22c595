"""The kernel in the unpacked packages: its image, and its modules in the order in which they can be loaded."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from backports import zstd
from errors import BuildError

# A signed module ends with this line, preceded by the signature and a 12-byte trailer that tells its length.
_SIGNATURE_MARK = b"~Module signature appended~\n"
_TRAILER_BYTES = 12
# By the last suffix of a module's name: Debian leaves modules as they are, Photon compresses most.
_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".ko": bytes,
    ".xz": lzma.decompress,
    ".zst": zstd.decompress,
    ".gz": gzip.decompress,
}


class MissingModuleError(BuildError):
    """The kernel has not got a module."""


class Kernel:
    """The one kernel below `root`."""

    def __init__(self, root: Path) -> None:
        images = sorted(root.glob("boot/vmlinuz-*"))
        if len(images) != 1:
            raise BuildError(f"one kernel expected below {root}, found {[image.name for image in images]}")
        self.image = images[0]
        self.version = self.image.name.removeprefix("vmlinuz-")
        candidates = [root / prefix / "modules" / self.version for prefix in ("lib", "usr/lib")]
        self._modules = next((path for path in candidates if path.is_dir()), candidates[0])
        self._files = {_name(path): path for path in sorted(self._modules.rglob("*.ko*"))}
        builtin = self._modules / "modules.builtin"
        if not builtin.is_file():
            raise MissingModuleError(
                f"kernel {self.version} has no modules.builtin in {' or '.join(map(str, candidates))}"
            )
        self._builtin = {_name(Path(line)) for line in builtin.read_text().splitlines()}

    def load_order(self, names: Iterable[str]) -> list[str]:
        """The modules and what they need, each after its needs; what is built in is left out."""
        order: dict[str, None] = {}
        for name in names:
            self._visit(_canonical(name), order)
        return list(order)

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Those of the modules that cannot be loaded: the kernel has not got them, or not all that they need."""
        return [name for name in names if not self._has(name)]

    def _has(self, name: str) -> bool:
        try:
            self.load_order([name])
        except MissingModuleError:
            return False
        return True

    def module_path(self, name: str) -> str:
        """Path below /lib/modules in the image."""
        path = self._files[name].relative_to(self._modules)
        return f"{self.version}/{path.parent}/{path.name.partition('.')[0]}.ko"

    def module_data(self, name: str) -> bytes:
        """The module, decompressed and without its signature: checking that costs boot time and guards nothing here."""
        path = self._files[name]
        try:
            return _without_signature(_DECOMPRESS[path.suffix](path.read_bytes()))
        except (KeyError, OSError, EOFError, lzma.LZMAError, zlib.error, zstd.ZstdError) as error:
            raise BuildError(f"module {path.name} cannot be read: {error!r}") from error

    def _visit(self, name: str, order: dict[str, None]) -> None:
        if name in order or name in self._builtin:
            return
        if name not in self._files:
            raise MissingModuleError(f"kernel {self.version} has no module {name}")
        for need in self._needs(name):
            self._visit(need, order)
        order[name] = None

    def _needs(self, name: str) -> Iterator[str]:
        """Dependencies by the module's own section of information; modules.dep is made only on installation."""
        info = self.module_data(name)
        for key, include_missing in ((b"\0depends=", True), (b"\0softdep=pre: ", False)):
            start = info.find(key)
            if start < 0:
                continue
            value = info[start + len(key) : info.index(b"\0", start + 1)].decode()
            for need in value.replace(",", " ").split():
                canonical = _canonical(need)
                if include_missing or canonical in self._files:
                    yield canonical


def _without_signature(data: bytes) -> bytes:
    if not data.endswith(_SIGNATURE_MARK):
        return data
    body = data[: -len(_SIGNATURE_MARK)]
    signature_bytes = int.from_bytes(body[-4:], "big")
    return body[: -_TRAILER_BYTES - signature_bytes]


def _name(path: Path) -> str:
    return _canonical(path.name.partition(".")[0])


def _canonical(name: str) -> str:
    return name.replace("-", "_")
