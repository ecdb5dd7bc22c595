"""Who this VCH is: made once, kept in its state directory."""

from __future__ import annotations

import json
import os
import secrets
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from portlayer.errors import DriverError

_FILE = "vch.json"


@dataclass(frozen=True)
class Identity:
    """`id` is random and stable; `name` is for people.

    What is made elsewhere, and found again by its name, is called by `lasting_name`.
    """

    id: str
    name: str
    created_unix_ns: int
    # Empty while `name` is still the first one.
    first_name: str = ""

    @property
    def lasting_name(self) -> str:
        return self.first_name or self.name


def load(state_dir: Path, name: str) -> Identity:
    """The identity kept there, made when there is none; a `name` that is given replaces the one kept. Blocks."""
    path = state_dir / _FILE
    try:
        kept = Identity(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        kept = Identity(secrets.token_hex(16), name or state_dir.name, time.time_ns())
        _write(path, kept)
    except (ValueError, TypeError) as error:
        raise DriverError(f"{path} is not readable ({error}): restore it or remove it") from error
    if name and name != kept.name:
        kept = replace(kept, name=name, first_name=kept.lasting_name)
        _write(path, kept)
    return kept


def _write(path: Path, identity: Identity) -> None:
    new = path.with_suffix(".new")
    with open(new, "w") as file:
        json.dump(asdict(identity), file)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
