"""Who a VCH is, over its lives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from portlayer import identity
from portlayer.errors import DriverError


def test_it_is_made_once(tmp_path: Path) -> None:
    made = identity.load(tmp_path, "red")
    assert (made.name, made.lasting_name, len(made.id)) == ("red", "red", 32)
    assert identity.load(tmp_path, "red") == identity.load(tmp_path, "") == made


def test_another_name_is_not_another_place(tmp_path: Path) -> None:
    """A VM folder is found by its name: under another one all containers would seem lost."""
    made = identity.load(tmp_path, "red")
    for name in ("blue", "default", "red"):
        now = identity.load(tmp_path, name)
        assert (now.id, now.name, now.lasting_name) == (made.id, name, "red")


def test_of_a_version_before_and_of_an_administrator(tmp_path: Path) -> None:
    """Who has lost the file writes it anew, with what vCenter shows of the id."""
    (tmp_path / "vch.json").write_text(json.dumps({"id": "0123456789ab", "name": "red", "created_unix_ns": 0}))
    assert identity.load(tmp_path, "blue").lasting_name == "red"


def test_one_that_is_damaged_is_not_made_anew(tmp_path: Path) -> None:
    (tmp_path / "vch.json").write_text("{")
    with pytest.raises(DriverError, match="restore it or remove it"):
        identity.load(tmp_path, "red")
