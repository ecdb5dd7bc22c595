"""Makes a squashfs of an image's tree: streamed as tar into mksquashfs, so that no file of it ever exists on the host.

The result depends on the tree alone: same layers, same bytes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from portlayer.drivers.base import SquashfsCompression
from portlayer.errors import ExhaustedError, InvalidArgumentError, PortLayerError, UnavailableError
from portlayer.storage import tar_write
from portlayer.storage.files import CHUNK_BYTES, check_space
from portlayer.storage.limits import MEBIBYTE
from portlayer.storage.tar import Kind
from portlayer.storage.tree import Node, RootTree, walk
from portlayer.storage.work import Work

_SPACE_CHECK_BYTES = 16 * MEBIBYTE
_ZEROS = bytes(CHUNK_BYTES)
_TAIL_BYTES = 2000


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


# The cheapest that is worth it. For zstd, mksquashfs does more than ten times as much work when it is not told.
_COMPRESSION = {
    SquashfsCompression.LZ4: ("-comp", "lz4"),
    SquashfsCompression.ZSTD: ("-comp", "zstd", "-Xcompression-level", "3"),
}


def make_squashfs(
    tree: RootTree,
    layers: Sequence[Path],
    target: Path,
    compression: SquashfsCompression,
    work: Work,
    reserve_bytes: int,
) -> None:
    """Writes the file system `tree`, whose content lies in the plain tar files `layers`, to `target`.

    Blocking. Raises InvalidArgumentError, ExhaustedError or UnavailableError; `target` is then of no use.
    """
    # Not sqfstar, which is this very program: its 4.5.1 understands no compression level.
    command = ["mksquashfs", "-", str(target), "-tar", "-quiet", "-no-progress", "-mem", "256M"]
    # It takes the mode of the root from here alone; its owner is always 0, its time that of the environment.
    command += ["-root-mode", f"{tree.root.mode:o}", *_COMPRESSION[compression]]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "SOURCE_DATE_EPOCH": str(tree.newest_mtime)}

    def check() -> None:
        work.check()
        check_space(target.parent, reserve_bytes)

    # What it says goes to memory: on a full disk it could not be read again.
    with open(os.memfd_create("mksquashfs"), "w+b") as words:
        with work.process(
            command, stdin=subprocess.PIPE, stdout=words, stderr=subprocess.STDOUT, env=environment
        ) as child:
            assert child.stdin is not None
            try:
                with contextlib.closing(child.stdin):
                    write_tree(tree, layers, child.stdin, check)
            except BrokenPipeError:
                pass  # it has given up; its own words say why
            status = child.wait()
        work.check()
        if status:
            raise _failure(status, words)


def write_tree(tree: RootTree, layers: Sequence[Path], sink: Sink, check: Callable[[], None]) -> None:
    """The whole tree as one tar archive. `check` is called before each piece of content and may raise."""
    with contextlib.ExitStack() as stack:
        writer = _TreeWriter([stack.enter_context(layer.open("rb")) for layer in layers], sink, check)
        for path, node in walk(tree.root):
            writer.add(path, node)
        sink.write(tar_write.TRAILER)


class _TreeWriter:
    def __init__(self, layers: Sequence[BinaryIO], sink: Sink, check: Callable[[], None]) -> None:
        self._layers = layers
        self._sink = sink
        self._check = check
        self._unchecked = _SPACE_CHECK_BYTES
        # Path of each file written, for further links to it. By identity: nodes live as long as their tree.
        self._written: dict[int, bytes] = {}

    def add(self, path: bytes, node: Node) -> None:
        if node.kind is Kind.FILE and (first := self._written.setdefault(id(node), path)) != path:
            self._sink.write(tar_write.header(path, Kind.HARD_LINK, mode=node.mode, link=first))
            return
        self._sink.write(
            tar_write.header(
                path,
                node.kind,
                mode=node.mode,
                uid=node.uid,
                gid=node.gid,
                mtime=node.mtime,
                size=node.size,
                link=node.link,
                device=node.device,
                xattrs=node.xattrs,
            )
        )
        if node.kind is Kind.FILE:
            self._add_content(node)

    def _add_content(self, node: Node) -> None:
        file, position = self._layers[node.layer], 0
        for segment in node.segments:
            self._add_zeros(segment.offset - position)
            self._copy(file, segment.position, segment.length)
            position = segment.offset + segment.length
        self._add_zeros(node.size - position)
        self._sink.write(tar_write.padding(node.size))

    def _copy(self, file: BinaryIO, position: int, length: int) -> None:
        file.seek(position)
        while length:
            data = file.read(min(CHUNK_BYTES, length))
            if not data:
                raise InvalidArgumentError("a layer became shorter while it was read")
            self._write_content(data)
            length -= len(data)

    def _add_zeros(self, length: int) -> None:
        while length:
            data = _ZEROS[:length]
            self._write_content(data)
            length -= len(data)

    def _write_content(self, data: bytes) -> None:
        self._unchecked += len(data)
        if self._unchecked >= _SPACE_CHECK_BYTES:
            self._check()
            self._unchecked = 0
        self._sink.write(data)


def _failure(status: int, words: BinaryIO) -> PortLayerError:
    words.seek(max(0, words.seek(0, os.SEEK_END) - _TAIL_BYTES))
    text = words.read().decode(errors="replace").strip()
    if "no space left" in text.lower() or "out of space" in text.lower():
        return ExhaustedError("making the image disk: no space left on device")
    return UnavailableError(f"making the image disk: mksquashfs ended with {status}: {text or 'without a word'}")
