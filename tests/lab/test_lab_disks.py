"""What vcsim's disks lack is made good, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import lab_disks
import pytest
from lab_estate import DATASTORE, EMPTY, Estate, delta_disk
from lab_hardware import LabError

CONTENT = b"content" + bytes((1 << 20) - 7)


@pytest.fixture
def empty(estate: Estate) -> Path:
    estate.make_disk(EMPTY, CONTENT)
    return estate.directory / "vch/empty.vmdk"


def test_a_delta_begins_as_its_parent_and_keeps_what_it_was_given(estate: Estate, empty: Path) -> None:
    estate.create("web", delta_disk("web"))
    delta = estate.directory / "web/writable.vmdk"
    content = lab_disks.content_file(delta)
    assert content.stat().st_size == 0, "vcsim has begun to fill deltas: the lab need not any more"
    lab_disks.prepare((delta, empty))
    assert content.read_bytes() == CONTENT

    content.write_bytes(CONTENT[::-1])
    lab_disks.prepare((delta, empty))
    assert content.read_bytes() == CONTENT[::-1]
    assert lab_disks.content_file(empty).read_bytes() == CONTENT


def test_a_copy_names_its_own_content(estate: Estate, empty: Path) -> None:
    estate.copy_disk(EMPTY, f"[{DATASTORE}] vch/copy.vmdk")
    copy = empty.with_name("copy.vmdk")
    assert '"empty-flat.vmdk"' in copy.read_text(), "vcsim has begun to name it: the lab need not any more"
    lab_disks.prepare((copy,))
    assert 'RW 2048 VMFS "copy-flat.vmdk"' in copy.read_text()
    assert '"empty-flat.vmdk"' in empty.read_text()


def test_content_is_as_large_as_the_descriptor_says(empty: Path) -> None:
    content = lab_disks.content_file(empty)
    content.write_bytes(b"short")
    lab_disks.prepare((empty,))
    assert content.read_bytes() == b"short" + bytes((1 << 20) - 5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("RW 2048 VMFS", "no descriptor"),
        ("# Disk DescriptorFile\n", "no descriptor"),
        ('# Disk DescriptorFile\ncreateType="vmfs"\nRW 1 VMFS "a.vmdk"\nRW 1 VMFS "b.vmdk"\n', "no descriptor"),
        ('# Disk DescriptorFile\ncreateType="vmfs"\nRW 1 VMFS "lone-flat.vmdk"\n', "has no lone-flat.vmdk"),
    ],
)
def test_broken_disks_are_told(tmp_path: Path, text: str | None, words: str) -> None:
    descriptor = tmp_path / "lone.vmdk"
    if text is not None:
        descriptor.write_text(text)
    with pytest.raises(LabError, match=words):
        lab_disks.prepare((descriptor,))
