"""packages.toml as types, as it reads for one distribution. Knows nothing of where packages come from."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import BuildError


@dataclass(frozen=True)
class Package:
    """A package by its alternative names; `files` are globs of what the image takes from it, besides libraries.

    `resolve`, when there is one, is a regular expression: the names of the dependencies to take in its place.
    """

    names: tuple[str, ...]
    files: tuple[str, ...]
    resolve: str
    kernel: bool

    def for_python(self, version: str) -> Package:
        """The same with "{python}" filled in."""
        fill = [tuple(text.replace("{python}", version) for text in texts) for texts in (self.names, self.files)]
        return Package(fill[0], fill[1], self.resolve, self.kernel)


@dataclass(frozen=True)
class Wheel:
    """A Python distribution of the host's environment; `files` are globs of what the image takes from it.

    `unneeded_libraries` are taken out of its shared objects; `imports` are modules that must work in the guest.
    """

    name: str
    files: tuple[str, ...]
    unneeded_libraries: tuple[str, ...]
    imports: tuple[str, ...]


@dataclass(frozen=True)
class Platform:
    """A kind of machine, told by the PCI vendor of its devices ("0x15ad"), and the kernel modules for it."""

    name: str
    pci_vendor: str
    load: tuple[str, ...]
    vsock: tuple[str, ...]


@dataclass(frozen=True)
class Declaration:
    """All of packages.toml."""

    python: tuple[str, ...]
    packages: tuple[Package, ...]
    wheels: tuple[Wheel, ...]
    stdlib_exclude: tuple[str, ...]
    lazy: tuple[str, ...]
    modules_load: tuple[str, ...]
    modules_vsock: tuple[str, ...]
    modules_available: tuple[str, ...]
    platforms: tuple[Platform, ...]
    cd_command_line: str
    directories: tuple[str, ...]


def read(path: Path, distribution: str = "debian") -> Declaration:
    """What is declared for packages of `distribution`. Raises BuildError when a key is missing."""
    try:
        return _parse(tomllib.loads(path.read_text()), distribution)
    except (KeyError, tomllib.TOMLDecodeError) as error:
        raise BuildError(f"{path}: {error!r}") from error


def _parse(data: dict[str, Any], distribution: str) -> Declaration:
    return Declaration(
        python=tuple(data["python"]),
        packages=tuple(
            Package(
                names=tuple(item["names"][distribution]),
                files=tuple(item.get("files", ())),
                resolve=item.get("resolve", {}).get(distribution, ""),
                kernel=item.get("kernel", False),
            )
            for item in data["package"]
            if distribution in item["names"]
        ),
        wheels=tuple(
            Wheel(
                name=item["name"],
                files=tuple(item["files"]),
                unneeded_libraries=tuple(item.get("unneeded_libraries", ())),
                imports=tuple(item["imports"]),
            )
            for item in data["wheel"]
        ),
        stdlib_exclude=tuple(data["stdlib"]["exclude"]),
        lazy=tuple(data["lazy"]["modules"]),
        modules_load=tuple(data["modules"]["load"]),
        modules_vsock=tuple(data["modules"]["vsock"]),
        modules_available=tuple(data["modules"]["available"]),
        platforms=tuple(
            Platform(name, item["pci_vendor"], tuple(item["load"]), tuple(item["vsock"]))
            for name, item in data["platform"].items()
        ),
        cd_command_line=data["cd"]["command_line"],
        directories=tuple(data["tree"]["directories"]),
    )
