"""Makes the modules of photon-image/, which is no package, importable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
GUEST_IMAGE = REPOSITORY / "build" / "photon-image"
sys.path.insert(0, str(REPOSITORY / "photon-image"))


@pytest.fixture(scope="session")
def guest_image() -> Path:
    """The image as `make` builds it; renewed here when the agent has changed."""
    from sources import AptSource

    import build

    cache = GUEST_IMAGE.parent / "photon-image-cache"
    build.build(GUEST_IMAGE, AptSource(cache / "packages"), cache)
    return GUEST_IMAGE
