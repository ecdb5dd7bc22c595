"""What the look at a hypervisor brings to light."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `costs` says what it means for containers; empty when all is well."""

    name: str
    level: Level
    found: str
    costs: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)
