"""Makes the modules of photon-image/, which is no package, importable."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "photon-image"))
