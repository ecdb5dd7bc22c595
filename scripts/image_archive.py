"""Writes container images as archives that `docker load` takes: the same bytes from the same content.

`Format.DOCKER` is what `docker save` wrote up to version 24, `Format.OCI` an OCI image layout, `Format.BOTH` what
`docker save` writes since 25: a layout with Docker's manifest.json beside it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

# Of every file and of the image: 2024-01-01.
EPOCH = 1704067200
_CREATED = "2024-01-01T00:00:00Z"
_OCI = "application/vnd.oci.image"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Format(StrEnum):
    """Layout of the archive."""

    DOCKER = "docker"
    OCI = "oci"
    BOTH = "both"


@dataclass(frozen=True)
class Image:
    """One image: its layers as uncompressed tar files, lowest first, and the `config` part of its configuration."""

    # Such as "busybox:latest".
    tag: str
    layers: tuple[bytes, ...]
    config: dict[str, Any]


class Layer:
    """Collects the files of a layer, in the order in which they are written."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)

    def directory(self, path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """An empty directory."""
        self._add(tarfile.DIRTYPE, path, mode, uid=uid, gid=gid)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A file of root's."""
        self._add(tarfile.REGTYPE, path, mode, data)

    def hard_link(self, path: str, target: str) -> None:
        """Another name of a file that is there already; `target` counts from the root, without a slash."""
        self._add(tarfile.LNKTYPE, path, 0o755, target=target)

    def symbolic_link(self, path: str, target: str) -> None:
        """`target` may be anything."""
        self._add(tarfile.SYMTYPE, path, 0o777, target=target)

    def tree(self, root: Path, left_out: Iterable[str] = ()) -> None:
        """A directory of this machine, sorted; `left_out` are paths below it."""
        skipped = set(left_out)

        def normal(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
            info.name = info.name.removeprefix("./")
            if info.name in skipped:
                return None
            info.mtime, info.uname, info.gname = EPOCH, "", ""
            return info

        for name in sorted(os.listdir(root)):
            self._tar.add(root / name, f"./{name}", filter=normal)

    def finish(self) -> bytes:
        """The tar file."""
        self._tar.close()
        return self._buffer.getvalue()

    def _add(
        self, kind: bytes, path: str, mode: int, data: bytes = b"", *, target: str = "", uid: int = 0, gid: int = 0
    ) -> None:
        info = tarfile.TarInfo(path)
        info.type, info.mode, info.mtime, info.size = kind, mode, EPOCH, len(data)
        info.linkname, info.uid, info.gid = target, uid, gid
        self._tar.addfile(info, io.BytesIO(data))


def write(image: Image, output: Path, layout: Format = Format.BOTH) -> None:
    """Makes the archive; nothing half-made is ever at `output`."""
    config = _json(_configuration(image))
    with _replaced(output) as out, tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        if layout is Format.DOCKER:
            _write_docker(tar, image, config)
        else:
            _write_layout(tar, image, config)
            if layout is Format.BOTH:
                names = [f"blobs/sha256/{_digest(layer)}" for layer in image.layers]
                _write_manifest(tar, image, f"blobs/sha256/{_digest(config)}", names)


def _write_docker(tar: tarfile.TarFile, image: Image, config: bytes) -> None:
    names = []
    for layer in image.layers:
        digest = _digest(layer)
        _put_directory(tar, digest)
        _put(tar, f"{digest}/VERSION", b"1.0")
        _put(tar, f"{digest}/layer.tar", layer)
        names.append(f"{digest}/layer.tar")
    name = f"{_digest(config)}.json"
    _put(tar, name, config)
    _write_manifest(tar, image, name, names)
    repository, _, tag = image.tag.rpartition(":")
    _put(tar, "repositories", _json({repository: {tag: _digest(image.layers[-1])}}))


def _write_manifest(tar: tarfile.TarFile, image: Image, config: str, layers: list[str]) -> None:
    _put(tar, "manifest.json", _json([{"Config": config, "RepoTags": [image.tag], "Layers": layers}]))


def _write_layout(tar: tarfile.TarFile, image: Image, config: bytes) -> None:
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "config": _descriptor(f"{_OCI}.config.v1+json", config),
            "layers": [_descriptor(f"{_OCI}.layer.v1.tar", layer) for layer in image.layers],
        }
    )
    _put_directory(tar, "blobs")
    _put_directory(tar, "blobs/sha256")
    blobs = {_digest(data): data for data in (config, manifest, *image.layers)}
    for digest in sorted(blobs):
        _put(tar, f"blobs/sha256/{digest}", blobs[digest])
    annotations = {
        "io.containerd.image.name": f"docker.io/library/{image.tag}",
        "org.opencontainers.image.ref.name": image.tag.rpartition(":")[2],
    }
    entry = _descriptor(f"{_OCI}.manifest.v1+json", manifest) | {"annotations": annotations}
    index = {"schemaVersion": 2, "mediaType": f"{_OCI}.index.v1+json", "manifests": [entry]}
    _put(tar, "index.json", _json(index))
    _put(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))


def _configuration(image: Image) -> dict[str, Any]:
    return {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": _CREATED,
        "config": image.config,
        "history": [{"created": _CREATED, "created_by": f"{image.tag} layer {n}"} for n in range(len(image.layers))],
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(layer)}" for layer in image.layers]},
    }


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{_digest(data)}", "size": len(data)}


def _put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), EPOCH, 0o644
    tar.addfile(info, io.BytesIO(data))


def _put_directory(tar: tarfile.TarFile, name: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mtime, info.mode = tarfile.DIRTYPE, EPOCH, 0o755
    tar.addfile(info)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as new:
        try:
            yield new
        except BaseException:
            os.unlink(new.name)
            raise
    os.chmod(new.name, 0o644)
    os.replace(new.name, path)
