"""The lock file: the very packages that an image is made of, pinned by version and digest.

TOML, one table for each package, made by `build.py --renew-lock` and meant to be kept under version control: what a
renewal changed is what its diff shows.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from errors import BuildError
from sources import ResolvedPackage

_HEADING = "# The packages of the guest image, pinned. Made by photon-image/build.py --renew-lock; not to be edited.\n"
_FIELDS = {
    "name": r"[A-Za-z0-9][A-Za-z0-9._+-]*",
    "evr": r"([0-9]+:)?[A-Za-z0-9._+~^]+-[A-Za-z0-9._+~^]+",
    "arch": r"x86_64|noarch",
    "sha256": r"[0-9a-f]{64}",
}


def read(path: Path) -> list[ResolvedPackage]:
    """Raises BuildError when there is none, or when it is not what `write` writes."""
    try:
        tables = tomllib.loads(path.read_text())["package"]
        packages = [_package(table) for table in tables]
    except FileNotFoundError as error:
        raise BuildError(f"there is no lock file {path}", hint="make it with --renew-lock") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"{path} is no lock file: {error!r}", hint="make it again with --renew-lock") from error
    if len({package.name for package in packages}) != len(packages):
        raise BuildError(f"{path} names a package twice", hint="make it again with --renew-lock")
    return sorted(packages)


def write(path: Path, packages: Sequence[ResolvedPackage]) -> None:
    """Replaces `path`, whole or not at all."""
    tables = []
    for package in sorted(set(packages)):
        values = (package.name, package.version, architecture(package), package.sha256)
        lines = [f'{field} = "{value}"\n' for field, value in zip(_FIELDS, values, strict=True)]
        tables.append("\n[[package]]\n" + "".join(lines))
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(_HEADING + "".join(tables))
    os.replace(temporary, path)


def architecture(package: ResolvedPackage) -> str:
    return package.file.removesuffix(".rpm").rpartition(".")[2]


def _package(table: dict[str, object]) -> ResolvedPackage:
    if table.keys() != _FIELDS.keys():
        raise ValueError(f"a package has {sorted(table)} where {sorted(_FIELDS)} are expected")
    for field, pattern in _FIELDS.items():
        if not re.fullmatch(pattern, str(table[field])):
            raise ValueError(f"{field} = {table[field]!r}")
    name, evr, arch, sha256 = (str(table[field]) for field in _FIELDS)
    return ResolvedPackage(name, evr, f"{name}-{evr}.{arch}.rpm", sha256)
