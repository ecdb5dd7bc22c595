"""Makes the protobuf stubs before setuptools looks for packages; all else is declared in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "proto"))

from generate import generate

generate()
setup()
