"""A store in a temporary directory, and a look at everything that it keeps there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from storage_state import State

from portlayer.drivers.qemu import LocalDatastore
from portlayer.storage import ImageStore


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path, LocalDatastore(tmp_path))


@pytest.fixture
async def store(state: State) -> ImageStore:
    opened = state.store()
    await opened.open()
    return opened


@pytest.fixture
def nobody() -> Callable[[str], list[str]]:
    """No container uses any image."""
    return lambda _: []
