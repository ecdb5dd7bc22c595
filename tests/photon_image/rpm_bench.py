"""A repository in a directory, and what a build does with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import rpm_lock
import rpm_repository
import rpm_source
from errors import BuildError
from rpm_repository import Signer, root_with
from rpm_source import Access, LockedSource


class Bench:
    """Packages are added to `repository`, locked by `renew`, built by `unpack` with a cache of its own."""

    def __init__(self, directory: Path, vendor: Signer) -> None:
        self.directory = directory
        self.repository = directory / "repository"
        self.lock = directory / "photon.lock"
        self.cache = directory / "cache"
        self.access = Access((self.repository.as_uri(),), (vendor.key,))

    def add(self, signed_by: Signer | None, name: str, version: str = "1.0", text: str = "", **more: str) -> Path:
        root = root_with(self.directory / "root", {f"usr/share/{name}": text or version})
        requires = more.pop("requires", "").split()
        file = rpm_repository.package(self.repository, name, version, root, requires=requires, **more)
        if signed_by:
            signed_by.sign_packages(file)
        rpm_repository.index(self.repository)
        return file

    def renew(self, *names: str, access: Access | None = None) -> None:
        with rpm_source.opened(access or self.access, self.directory / "renewal") as repository:
            rpm_lock.write(self.lock, repository.resolve(names))
        shutil.rmtree(self.directory / "renewal")

    def unpack(self, *names: str, access: Access | None = None) -> Path:
        target = self.directory / "unpacked"
        with rpm_source.opened(access or self.access, self.cache) as repository:
            source = LockedSource(self.lock, repository)
            source.unpack(source.resolve(names), target)
        return target

    def refused(self, *names: str, access: Access | None = None) -> str:
        with pytest.raises(BuildError) as caught:
            self.unpack(*names, access=access)
        assert not (self.directory / "unpacked").exists()
        return str(caught.value)
