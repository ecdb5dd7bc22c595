"""The initramfs archive: readable by others, and a function of its entries alone."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import cpio
import pytest

ENTRIES = {
    "init": cpio.file(b"#!/bin/true\n", executable=True),
    "usr/lib/a/data": cpio.file(b"12345"),
    "usr/bin/python3": cpio.symlink("python3.11"),
    "tmp": cpio.directory(0o1777),
    "dev/null": cpio.character_device(1, 3, 0o666),
}


def archive(entries: dict[str, cpio.Entry]) -> bytes:
    out = io.BytesIO()
    cpio.write(out, entries)
    return out.getvalue()


def test_order_of_entries_does_not_matter() -> None:
    assert archive(ENTRIES) == archive(dict(reversed(ENTRIES.items())))


def test_parents_come_before_children() -> None:
    data = archive(ENTRIES)
    assert (
        data.index(b"usr\0") < data.index(b"usr/lib\0") < data.index(b"usr/lib/a\0") < data.index(b"usr/lib/a/data\0")
    )


def test_everything_is_aligned() -> None:
    data = archive(ENTRIES)
    position, names = 0, []
    while not names or names[-1] != b"TRAILER!!!":
        fields = [int(data[position + 6 + 8 * i : position + 14 + 8 * i], 16) for i in range(13)]
        assert data[position : position + 6] == b"070701"
        size, name_bytes = fields[6], fields[11]
        names.append(data[position + 110 : position + 110 + name_bytes - 1])
        position = (position + 110 + name_bytes + 3) // 4 * 4
        position = (position + size + 3) // 4 * 4
    assert position == len(data)
    assert len(set(names)) == len(ENTRIES) + 5 + 1  # parents: usr, usr/lib, usr/lib/a, usr/bin, dev; and the trailer


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio here")
def test_cpio_reads_it(tmp_path: Path) -> None:
    entries = {path: entry for path, entry in ENTRIES.items() if path != "dev/null"}
    subprocess.run(["cpio", "-id", "--quiet"], input=archive(entries), cwd=tmp_path, check=True)
    assert (tmp_path / "usr/lib/a/data").read_bytes() == b"12345"
    assert (tmp_path / "usr/bin/python3").readlink() == Path("python3.11")
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
