"""Container logs: crash safety, rotation, and every way of reading them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S

from portlayer.logs import Chunk, Log, LogQuery, read
from portlayer.logs.records import Record, encode


def opened(directory: Path, **options: int | bool) -> Log:
    log = Log(directory, **options)  # type: ignore[arg-type]
    log.open()
    return log


def write(log: Log, *pieces: tuple[int, bytes], run: int = 1, start_ns: int = 1_000_000_000) -> None:
    log.begin_run(run)
    for number, (stream, data) in enumerate(pieces):
        log.append(Record(stream, run, start_ns + number, log.end_offset, data))


async def text(log: Log, query: LogQuery | None = None) -> bytes:
    return b"".join([chunk.data async for chunk in read(log, query or LogQuery())])


async def test_what_is_written_is_read(tmp_path: Path) -> None:
    log = opened(tmp_path)
    write(log, (1, b"a\n"), (1, b"b\n"), (2, b"c\n"), (1, b"d"))
    assert [chunk async for chunk in read(log, LogQuery())] == [
        Chunk(1, b"a\nb\n"),
        Chunk(2, b"c\n"),
        Chunk(1, b"d"),
    ]
    assert await text(log, LogQuery(streams=frozenset((2,)))) == b"c\n"


async def test_a_log_cut_short_by_a_crash_goes_on_behind_the_last_whole_record(tmp_path: Path) -> None:
    log = opened(tmp_path)
    write(log, (1, b"first"), (2, b"second"))
    log.close()
    path = next(tmp_path.glob("*.log"))
    whole = path.read_bytes()
    path.write_bytes(whole + encode(Record(1, 1, 1, 11, b"lost"))[:-2])
    again = opened(tmp_path)
    assert (again.run, again.end_offset) == (1, 11)
    again.append(Record(1, 1, 2, 11, b"third"))
    assert await text(again) == b"firstsecondthird"


async def test_rotation_bounds_the_disk_and_keeps_the_end(tmp_path: Path) -> None:
    log = opened(tmp_path, max_file_bytes=1000, max_files=3)
    write(log, *((1, f"{number:099d}\n".encode()) for number in range(100)))
    assert len(log.files()) == 3
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3000
    lines = (await text(log)).split()
    assert int(lines[-1]) == 99
    assert [int(line) for line in lines] == list(range(100 - len(lines), 100))
    log.close()
    assert opened(tmp_path, max_file_bytes=1000, max_files=3).end_offset == 10_000


async def test_without_a_log_only_the_position_is_kept(tmp_path: Path) -> None:
    log = opened(tmp_path, keep=False)
    write(log, (1, b"secret"))
    assert await text(log) == b""
    log.close()
    again = opened(tmp_path, keep=False)
    assert (again.run, again.end_offset) == (1, 6)


@pytest.mark.parametrize(
    ("tail", "expected"), [(0, b""), (1, b"e"), (2, b"d\ne"), (3, b"c\nd\ne"), (99, b"a\nb\nc\nd\ne")]
)
async def test_tail(tmp_path: Path, tail: int, expected: bytes) -> None:
    log = opened(tmp_path)
    write(log, (1, b"a\nb"), (1, b"\nc\n"), (1, b"d\ne"))
    assert await text(log, LogQuery(tail=tail)) == expected


async def test_timestamps_stand_before_lines_only(tmp_path: Path) -> None:
    log = opened(tmp_path)
    write(log, (1, b"one\ntw"), (2, b"err\n"), (1, b"o\n"))
    assert [chunk async for chunk in read(log, LogQuery(timestamps=True))] == [
        Chunk(1, b"1970-01-01T00:00:01.000000000Z one\n1970-01-01T00:00:01.000000000Z tw"),
        Chunk(2, b"1970-01-01T00:00:01.000000001Z err\n"),
        Chunk(1, b"o\n"),
    ]


async def test_since_and_until(tmp_path: Path) -> None:
    log = opened(tmp_path)
    write(log, *((1, f"{number}\n".encode()) for number in range(5)))
    assert await text(log, LogQuery(since_ns=1_000_000_002)) == b"2\n3\n4\n"
    assert await text(log, LogQuery(until_ns=1_000_000_001)) == b"0\n1\n"
    assert await text(log, LogQuery(until_ns=1_000_000_003, tail=2)) == b"2\n3\n"


async def test_following_ends_with_the_run(tmp_path: Path) -> None:
    log = opened(tmp_path)
    write(log, (1, b"before\n"))
    running = True
    seen: list[bytes] = []

    async def follow() -> None:
        async for chunk in read(log, LogQuery(), follow_while=lambda: running):
            seen.append(chunk.data)

    task = asyncio.create_task(follow())
    async with asyncio.timeout(PATIENCE_S):
        while not seen:
            await asyncio.sleep(0)
        log.append(Record(1, 1, 9, log.end_offset, b"later\n"))
        while len(seen) < 2:
            await asyncio.sleep(0)
        log.append(Record(1, 1, 9, log.end_offset, b"last\n"))
        running = False
        log.notify()
        await task
    assert seen == [b"before\n", b"later\n", b"last\n"]


async def test_a_full_disk_leaves_the_log_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(tmp_path)
    write(log, (1, b"kept\n"))

    def half(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", half)
        with pytest.raises(OSError, match="No space"):
            log.append(Record(1, 1, 2, 5, b"lost\n"))
    log.append(Record(1, 1, 2, 5, b"more\n"))
    assert await text(log) == b"kept\nmore\n"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pieces=st.lists(st.tuples(st.sampled_from((1, 2)), st.text("ab\n", min_size=1, max_size=6)), max_size=12),
    tail=st.integers(0, 8),
)
def test_tail_gives_the_last_lines_whatever_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, str]], tail: int
) -> None:
    log = opened(tmp_path_factory.mktemp("log"))
    write(log, *((stream, data.encode()) for stream, data in pieces))
    only = [data for stream, data in pieces if stream == 1]
    lines = "".join(only).splitlines(keepends=True)
    wanted = "".join(lines[len(lines) - min(tail, len(lines)) :]).encode()
    query = LogQuery(streams=frozenset((1,)), tail=tail)
    assert asyncio.run(text(log, query)) == wanted
    log.close()
