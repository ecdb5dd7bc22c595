"""Style, types, protos and the import graph are promises too: the linters run as tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "--quiet", "."),
        ("ruff", "format", "--check", "--quiet", "."),
        ("mypy", "--no-error-summary"),
        # With a cache of its own: two at once would have to wait for each other's database.
        ("mypy", "--no-error-summary", "--cache-dir=.mypy_cache/tools", "scripts", "photon-image", "proto"),
        ("buf", "lint", "proto"),
    ],
    ids=lambda command: "-".join(command[:3]),
)
def test_linter_is_content(command: tuple[str, ...]) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def _sources(package: str) -> list[Path]:
    # In order: workers that run tests in parallel must find the same ones, whatever the file system says first.
    found = sorted(path for path in (ROOT / package).rglob("*.py") if "v1" not in path.relative_to(ROOT).parts)
    assert found
    return found


@pytest.mark.parametrize("path", _sources("tether"), ids=str)
def test_tether_imports_only_what_the_guest_has(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | {"tether", "psutil"}
    for name in _imports(path):
        assert name.split(".")[0] in allowed or name.startswith("google.protobuf"), name


@pytest.mark.parametrize("path", _sources("portlayer"), ids=str)
def test_portlayer_takes_only_the_wire_from_tether(path: Path) -> None:
    for name in _imports(path):
        if name.split(".")[0] == "tether":
            assert name.startswith(("tether.wire", "tether.v1")), name
    if "drivers" in path.parts:
        assert not any(name.startswith("portlayer.services") for name in _imports(path))


@pytest.mark.parametrize("path", _sources("personality"), ids=str)
def test_personality_is_a_pure_client_of_the_api(path: Path) -> None:
    for name in _imports(path):
        assert name.split(".")[0] not in {"tether", "vch"}, name
        assert not name.startswith("portlayer") or name.startswith("portlayer.v1"), name


@pytest.mark.parametrize("path", _sources("vch"), ids=str)
def test_vch_starts_the_parts_and_speaks_to_them_by_the_api(path: Path) -> None:
    """But for `vch doctor`, and for what is asked before there is a port layer: whether options make sense."""
    drivers = ("portlayer.drivers", "portlayer.errors") if path.name == "doctor.py" else ()
    if path.name == "sense.py":
        drivers = ("portlayer.config", "portlayer.drivers.vsphere.settings", "portlayer.errors")
    for name in _imports(path):
        assert name.split(".")[0] not in {"tether", "personality"}, name
        assert not name.startswith("portlayer") or name.startswith(("portlayer.v1", *drivers)), name


@pytest.mark.parametrize("path", [*_sources("tether"), *_sources("portlayer")], ids=str)
def test_lower_layers_do_not_know_the_upper(path: Path) -> None:
    assert not {name.split(".")[0] for name in _imports(path)} & {"personality", "vch"}


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:]
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[0] for line in listed.splitlines()] == phony


def test_specification_names_existing_tests() -> None:
    named = [
        word.strip("`,")
        for line in (ROOT / "SPECIFICATION.md").read_text().splitlines()
        for word in line.replace("|", " ").split()
        if word.startswith("`tests/")
    ]
    assert named
    for reference in named:
        path, _, function = reference.partition("::")
        assert f"def {function}(" in (ROOT / path).read_text(), reference
