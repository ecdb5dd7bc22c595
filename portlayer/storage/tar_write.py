"""Writes tar headers: ustar, with pax records where ustar is too small."""

from __future__ import annotations

from collections.abc import Mapping

from portlayer.storage.tar import BLOCK, Kind

_MAX_NAME = 100
_MAX_ID = 0o7777777
_MAX_SIZE = 0o77777777777
TRAILER = bytes(2 * BLOCK)


def header(
    name: bytes,
    kind: Kind,
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    size: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """All the blocks that stand before an entry's content."""
    records = {b"SCHILY.xattr." + key: value for key, value in sorted((xattrs or {}).items())}
    if len(name) > _MAX_NAME:
        records[b"path"] = name
    if len(link) > _MAX_NAME:
        records[b"linkpath"] = link
    for key, number, limit in ((b"size", size, _MAX_SIZE), (b"uid", uid, _MAX_ID), (b"gid", gid, _MAX_ID)):
        if number > limit:
            records[key] = b"%d" % number
    block = _block(
        name[:_MAX_NAME],
        kind.value.encode(),
        (mode, min(uid, _MAX_ID), min(gid, _MAX_ID), min(size, _MAX_SIZE), mtime),
        link[:_MAX_NAME],
        device,
    )
    return _pax(records) + block if records else block


def padding(size: int) -> bytes:
    """What fills content of `size` bytes up to a whole block."""
    return bytes(-size % BLOCK)


def _pax(records: Mapping[bytes, bytes]) -> bytes:
    body = b"".join(_record(key, value) for key, value in records.items())
    return _block(b"pax", b"x", (0o644, 0, 0, len(body), 0), b"", (0, 0)) + body + padding(len(body))


def _record(key: bytes, value: bytes) -> bytes:
    """A record begins with its own length, in which the digits of that length count."""
    bare = len(key) + len(value) + 3
    length = bare + len(str(bare))
    length = bare + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _block(
    name: bytes, type_: bytes, numbers: tuple[int, int, int, int, int], link: bytes, device: tuple[int, int]
) -> bytes:
    mode, uid, gid, size, mtime = numbers
    block = bytearray(BLOCK)
    block[0 : len(name)] = name
    block[100:136] = b"%07o\0%07o\0%07o\0%011o\0" % (mode, uid, gid, size)
    block[136:156] = b"%011o\0        " % mtime
    block[156:157] = type_
    block[157 : 157 + len(link)] = link
    block[257:265] = b"ustar\00000"
    block[329:345] = b"%07o\0%07o\0" % device
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
