"""Which kernel modules the agent loads, on files in the place of the image's and the kernel's."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tether import modules


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An image for two platforms on a machine with devices of one and of a stranger; the modules that were loaded."""
    files = {
        "platform.red": "0x1111\n",
        "platform.blue": "0x2222\n",
        "modules.load": "v/common.ko\n",
        "modules.load.red": "v/red.ko\n",
        "modules.load.blue": "v/blue1.ko\nv/absent.ko\nv/blue2.ko\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for number, vendor in enumerate(("0x8086\n", "0x2222\n", "0x2222\n")):
        (tmp_path / f"pci/0000:00:0{number}.0").mkdir(parents=True)
        (tmp_path / f"pci/0000:00:0{number}.0/vendor").write_text(vendor)
    found: list[str] = []

    def load_module(path: str) -> None:
        name = path.removeprefix("/lib/modules/v/").removesuffix(".ko")
        if name in failing:
            raise OSError(failing[name], name)
        found.append(name)

    failing = {"absent": errno.ENODEV}
    monkeypatch.setattr(modules, "_ETC", tmp_path)
    monkeypatch.setattr(modules, "_PCI_DEVICES", tmp_path / "pci")
    monkeypatch.setattr(modules.linux, "load_module", load_module)
    return found


def test_only_the_machines_platform_is_loaded(loaded: list[str]) -> None:
    platforms = modules.platforms()
    assert platforms == ["blue"]
    modules.load_for("load", platforms)
    modules.load("load")
    assert loaded == ["blue1", "blue2", "common"]


def test_what_every_machine_needs_must_load(loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise OSError(errno.ENODEV, path)

    monkeypatch.setattr(modules.linux, "load_module", refuse)
    with pytest.raises(OSError, match="common"):
        modules.load("load")
    modules.load_for("load", ["blue"])
    assert loaded == []
