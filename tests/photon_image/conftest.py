"""Makes the modules of photon-image/, which is no package, importable."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
GUEST_IMAGE = REPOSITORY / "build" / "photon-image"
sys.path.insert(0, str(REPOSITORY / "photon-image"))

import rpm_repository  # noqa: E402
from rpm_bench import Bench  # noqa: E402
from rpm_repository import Signer  # noqa: E402


@pytest.fixture(scope="session")
def guest_image() -> Path:
    """The image as `make` builds it; renewed here when the agent has changed."""
    from sources import AptSource

    import build

    cache = GUEST_IMAGE.parent / "photon-image-cache"
    with build.locked(cache):
        build.build(GUEST_IMAGE, AptSource(cache / "packages"), cache)
    return GUEST_IMAGE


@pytest.fixture(scope="module")
def vendor() -> Iterator[Signer]:
    with rpm_repository.signer() as made:
        yield made


@pytest.fixture(scope="module")
def stranger() -> Iterator[Signer]:
    with rpm_repository.signer() as made:
        yield made


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, vendor: Signer) -> Path:
    """A repository with a package, signed by the vendor."""
    made = Bench(tmp_path_factory.mktemp("pristine"), vendor)
    made.add(vendor, "tool")
    return made.repository


@pytest.fixture
def bench(tmp_path: Path, vendor: Signer, pristine: Path) -> Bench:
    made = Bench(tmp_path, vendor)
    shutil.copytree(pristine, made.repository)
    return made
