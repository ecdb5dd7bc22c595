"""Where packages come from: the PackageSource interface, and Debian's and Ubuntu's apt.

A source says which packages it has, resolves meta packages, and unpacks files. What the image takes out of them is not
its business.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from errors import BuildError

SCRATCH = "scratch-"  # begins the names of temporary directories: those of builds that were killed are removed by them


@dataclass(frozen=True, order=True)
class ResolvedPackage:
    """One package file, pinned by its digest."""

    name: str
    version: str
    file: str
    sha256: str


class PackageSource(Protocol):
    """A repository of packages. `remedy` says what to do when it lacks one."""

    @property
    def remedy(self) -> str: ...

    def available(self, names: Sequence[str]) -> set[str]:
        """Those of `names` that can be had."""

    def dependencies(self, name: str, pattern: str) -> list[str]:
        """Direct dependencies of `name` whose whole name matches the regular expression, and theirs in turn.

        A source of RPMs has `name` itself among them when it matches.
        """

    def resolve(self, names: Sequence[str]) -> list[ResolvedPackage]:
        """Pins the newest version of each."""

    def unpack(self, packages: Sequence[ResolvedPackage], target: Path) -> None:
        """Downloads what is missing, verifies digests, unpacks all into `target`."""


class AptSource:
    """apt's configured repositories. Needs no privileges; downloads are kept in `cache`."""

    remedy = "run: sudo apt-get update"

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def available(self, names: Sequence[str]) -> set[str]:
        text = _run("apt-cache", "policy", *names)
        stanzas = re.findall(r"^(\S+):\n(?:  .*\n)*?  Candidate: (\S+)", text, re.MULTILINE)
        return {name.removesuffix(":amd64") for name, candidate in stanzas if candidate != "(none)"}

    def dependencies(self, name: str, pattern: str) -> list[str]:
        found: list[str] = []
        pending = [name]
        while pending:
            text = _run("apt-cache", "depends", "--important", pending.pop())
            for dependency in re.findall(r"Depends: (\S+)", text):
                if re.fullmatch(pattern, dependency) and dependency not in found:
                    found.append(dependency)
                    pending.append(dependency)
        return found

    def resolve(self, names: Sequence[str]) -> list[ResolvedPackage]:
        with tempfile.TemporaryDirectory() as empty:  # apt does not name what lies in the working directory
            # Of several digests apt names the longest, which is another one in Ubuntu's lists than in Debian's.
            sha256 = ("-o", "Acquire::ForceHash=SHA256")
            text = _run("apt-get", *sha256, "download", "--print-uris", *names, cwd=Path(empty))
        found = []
        for file, digest in re.findall(r"^'\S+' (\S+) \d+ SHA256:([0-9a-f]{64})$", text, re.MULTILINE):
            name, version, _ = unquote(file).split("_")
            found.append(ResolvedPackage(name, version, file, digest))
        if missing := set(names) - {package.name for package in found}:
            raise BuildError(f"apt names no file for {', '.join(sorted(missing))}", hint=self.remedy)
        return sorted(found)

    def unpack(self, packages: Sequence[ResolvedPackage], target: Path) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        self._download([package for package in packages if not self._is_cached(package)])
        for package in packages:
            _run("dpkg-deb", "--extract", str(self._cache / package.file), str(target))

    def _download(self, packages: Sequence[ResolvedPackage]) -> None:
        if not packages:
            return
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=self._cache) as scratch:
            _run("apt-get", "download", "--quiet", *[f"{p.name}={p.version}" for p in packages], cwd=Path(scratch))
            for file in Path(scratch).iterdir():
                shutil.move(file, self._cache / file.name)
        if broken := [package.file for package in packages if not self._is_cached(package)]:
            raise BuildError(f"downloaded files are missing or damaged: {', '.join(broken)}")

    def _is_cached(self, package: ResolvedPackage) -> bool:
        file = self._cache / package.file
        return file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() == package.sha256


def _run(*command: str, cwd: Path | None = None) -> str:
    """Runs apt or dpkg; its sandbox user is left out, it cannot write into a directory of ours."""
    if command[0] == "apt-get":
        command = (command[0], "-o", f"APT::Sandbox::User={'root' if os.geteuid() == 0 else ''}", *command[1:])
    try:
        result = subprocess.run(command, cwd=cwd, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is missing", hint="the image is built on Debian or Ubuntu") from error
    if result.returncode != 0:
        hint = "if apt's lists are old or empty, run: sudo apt-get update" if command[0].startswith("apt") else ""
        raise BuildError(f"{' '.join(command)} failed: {result.stderr.strip()}", hint=hint)
    return result.stdout
