"""The journal: nothing lost, nothing doubled, bounded."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tether.journal import Journal


def _drain(journal: Journal) -> bytes:
    pieces = []
    while piece := journal.take():
        pieces.append(piece.data)
    return b"".join(pieces)


@settings(deadline=None)  # the machine may be busy with other things
@given(chunks=st.lists(st.binary(min_size=1, max_size=9), min_size=1), data=st.data())
def test_seek_gives_exactly_what_follows(chunks: list[bytes], data: st.DataObject) -> None:
    journal = Journal()
    for chunk in chunks:
        journal.append(1, chunk, 0)
    whole = b"".join(chunks)
    forgotten = data.draw(st.integers(0, len(whole)))
    assert journal.acknowledge(forgotten)
    offset = data.draw(st.integers(forgotten, len(whole)))
    assert journal.seek(offset)
    assert _drain(journal) == whole[offset:]


def test_what_was_forgotten_or_never_was_cannot_be_had() -> None:
    journal = Journal()
    journal.append(1, b"abcdef", 0)
    assert journal.acknowledge(3)
    assert not journal.seek(2)
    assert not journal.seek(7)
    assert not journal.acknowledge(7)


def test_full_until_acknowledged() -> None:
    journal = Journal(capacity=1000)
    journal.append(1, bytes(800), 0)
    assert journal.full
    journal.acknowledge(800)
    assert not journal.full


def test_tiny_pieces_fill_it_too() -> None:
    journal = Journal(capacity=10_000)
    for _ in range(40):
        journal.append(1, b"x", 0)
    assert journal.full
