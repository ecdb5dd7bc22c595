"""Packages from RPM repositories such as Photon OS's, by dnf and rpm.

Two sources: a repository as it is now, from which a lock file is made, and what a lock file pins, which is what images
are built from. Nothing is taken from a package whose signature by a given key has not been checked.

A package is asked for by name, or by `name=VERSION` with `*` in the version, such as `python3=3.11.*`.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import rpm_files
import rpm_lock
from errors import BuildError
from sources import SCRATCH, ResolvedPackage

_SYSTEM_PYTHON = "/usr/bin/python3"  # has dnf's library, which the environment of this program has not
_QUERY = Path(__file__).resolve().parent / "dnf_query.py"
_ARCHITECTURE = "x86_64"


@dataclass(frozen=True)
class Access:
    """Where the packages are and who must have signed them.

    `repositories` are base URLs, all of them searched; `keys` are files with public keys. With `signed_metadata` the
    repositories' lists of packages must be signed too.
    """

    repositories: tuple[str, ...]
    keys: tuple[Path, ...]
    signed_metadata: bool = False


@contextmanager
def opened(access: Access, cache: Path) -> Iterator[RpmRepository]:
    """The repositories as one, seen as they are at the first request. Downloads are kept in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=cache) as scratch:
        yield RpmRepository(access, cache, Path(scratch))


class RpmRepository:
    """RPM repositories as they are now: a PackageSource of the newest packages."""

    remedy = "is the URL that of a Photon release with these packages? Those added later are in its update repository"

    def __init__(self, access: Access, cache: Path, scratch: Path) -> None:
        self._access = access
        self._cache = cache
        self._scratch = scratch

    def available(self, names: Sequence[str]) -> set[str]:
        packages = self._query([_wanted(name) for name in names])
        return {name for name in names if any(_fits(name, p["name"], p["version"]) for p in packages)}

    def dependencies(self, name: str, pattern: str) -> list[str]:
        found: list[str] = []
        pending = [name]
        while pending:
            for package in self._query([_wanted(pending.pop())]):
                for dependency in (package["name"], *package["requires"]):
                    if re.fullmatch(pattern, dependency) and dependency not in found:
                        found.append(dependency)
                        pending.append(dependency)
        return found

    def resolve(self, names: Sequence[str]) -> list[ResolvedPackage]:
        """Downloads: a digest is pinned only after the package's signature has been checked."""
        with self._downloaded([_wanted(name) for name in dict.fromkeys(names)]) as (packages, directory):
            if missing := [n for n in names if not any(_fits(n, p["name"], p["version"]) for p in packages)]:
                raise BuildError(f"packages not found: {', '.join(missing)}", hint=self.remedy)
            files = {directory / package["file"] for package in packages}
            rpm_files.verify(sorted(files), self._access.keys)
            pinned = [ResolvedPackage(p["name"], p["evr"], p["file"], _sha256(directory / p["file"])) for p in packages]
            for file in files:
                file.replace(self._cache / file.name)
        return sorted(set(pinned))

    def unpack(self, packages: Sequence[ResolvedPackage], target: Path) -> None:
        """Downloads what is missing; refuses what is not the pinned file or not signed by a given key."""
        self._download([package for package in packages if not self._is_cached(package)])
        files = [self._cache / package.file for package in packages]
        rpm_files.verify(files, self._access.keys)
        for file in files:
            rpm_files.unpack(file, target)

    def _download(self, packages: Sequence[ResolvedPackage]) -> None:
        if not packages:
            return
        with self._downloaded([_exactly(package) for package in packages]) as (_, directory):
            for package in packages:
                file = directory / package.file
                if not file.exists():
                    raise BuildError(
                        f"the repository has no {package.file}, which the lock file names",
                        hint="give the repository that has it too, or take newer packages with --renew-lock",
                    )
                if _sha256(file) != package.sha256:
                    raise BuildError(
                        f"{package.file} is not the file that was locked: its sha256 is {_sha256(file)}, "
                        f"the lock file says {package.sha256}",
                        hint="find out who changed it; --renew-lock accepts what the repository has now",
                    )
            for package in packages:
                (directory / package.file).replace(self._cache / package.file)

    def _is_cached(self, package: ResolvedPackage) -> bool:
        file = self._cache / package.file
        return file.exists() and _sha256(file) == package.sha256

    @contextmanager
    def _downloaded(self, wanted: Sequence[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], Path]]:
        """(descriptions, directory of the files), the files there as long as the context lasts."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as directory:
            yield self._query(wanted, download_to=directory), Path(directory)

    def _query(self, wanted: Sequence[dict[str, Any]], **more: str) -> list[dict[str, Any]]:
        if not self._access.repositories:
            raise BuildError("packages have to be downloaded", hint="say from where with --repository URL")
        request = {
            "repositories": self._access.repositories,
            "keys": [key.resolve().as_uri() for key in self._access.keys],
            "signed_metadata": self._access.signed_metadata,
            "architecture": _ARCHITECTURE,
            "scratch": str(self._scratch),
            "wanted": wanted,
            **more,
        }
        command = [_SYSTEM_PYTHON, "-I", str(_QUERY)]
        result = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True)
        if "No module named 'dnf'" in result.stderr:
            raise BuildError("dnf is missing", hint="run: sudo apt-get install python3-dnf rpm cpio")
        try:
            answer = json.loads(result.stdout)
        except ValueError as error:
            raise BuildError(f"dnf failed: {result.stderr.strip()}") from error
        if "error" in answer:
            raise BuildError(f"dnf failed: {answer['error']}", hint="is the repository complete, and its URL right?")
        packages: list[dict[str, Any]] = answer["packages"]
        return packages


class LockedSource:
    """What a lock file pins: a PackageSource that knows nothing else, and asks no repository for what is cached."""

    remedy = "the lock file is older than the image's declaration: make it again with --renew-lock"

    def __init__(self, lock: Path, repository: RpmRepository) -> None:
        self._packages = rpm_lock.read(lock)
        self._repository = repository

    def available(self, names: Sequence[str]) -> set[str]:
        return {name for name in names if self._find(name)}

    def dependencies(self, name: str, pattern: str) -> list[str]:
        return [package.name for package in self._packages if re.fullmatch(pattern, package.name)]

    def resolve(self, names: Sequence[str]) -> list[ResolvedPackage]:
        found = [package for name in names for package in self._find(name)]
        if missing := [name for name in names if not self._find(name)]:
            raise BuildError(f"the lock file lacks {', '.join(missing)}", hint=self.remedy)
        return sorted(set(found))

    def unpack(self, packages: Sequence[ResolvedPackage], target: Path) -> None:
        self._repository.unpack(packages, target)

    def _find(self, name: str) -> list[ResolvedPackage]:
        return [p for p in self._packages if _fits(name, p.name, p.version.partition(":")[2] or p.version)]


def _wanted(name: str) -> dict[str, Any]:
    plain, _, version = name.partition("=")
    return {"name": plain, "version__glob": version} if version else {"name": plain}


def _exactly(package: ResolvedPackage) -> dict[str, Any]:
    return {"name": package.name, "evr": package.version, "arch": rpm_lock.architecture(package)}


def _fits(wanted: str, name: str, version: str) -> bool:
    """Whether `name` and `version`, with its release or without, are what `wanted` asks for."""
    plain, _, glob = wanted.partition("=")
    return plain == name and (not glob or fnmatchcase(version.partition("-")[0], glob))


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
