"""Stands in front of the real package: its `main` is a fake, everything else is the real one's."""

from pathlib import Path

__path__.append(str(Path(__file__).resolve().parents[4] / "portlayer"))
