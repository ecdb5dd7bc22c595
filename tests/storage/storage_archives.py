"""Archives for the tests, made with the standard library: an implementation of tar that is not ours."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from backports import zstd

from portlayer.storage import ImageStore, LoadedImage
from portlayer.storage.manifest import HOST_ARCHITECTURE

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
CREATED = "2024-05-06T07:08:09.123456789Z"


@dataclass
class File:
    """An entry of a layer."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 1_700_000_000
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, str] = field(default_factory=dict)


def directory(name: str, mode: int = 0o755, **kw: Any) -> File:
    return File(name, type=tarfile.DIRTYPE, mode=mode, **kw)


def symlink(name: str, target: str) -> File:
    return File(name, type=tarfile.SYMTYPE, link=target, mode=0o777)


def hard_link(name: str, target: str) -> File:
    return File(name, type=tarfile.LNKTYPE, link=target)


def make_tar(files: Iterable[File], format_: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
        for file in files:
            info = tarfile.TarInfo(file.name)
            info.type, info.mode, info.uid, info.gid = file.type, file.mode, file.uid, file.gid
            info.mtime, info.linkname, info.size = file.mtime, file.link, len(file.data)
            info.devmajor, info.devminor = file.device
            info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in file.xattrs.items()}
            tar.addfile(info, io.BytesIO(file.data))
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def compress(data: bytes, kind: str) -> bytes:
    if kind == "gzip":
        return gzip.compress(data, mtime=0)
    return zstd.compress(data) if kind == "zstd" else data


@dataclass
class Image:
    """An image for an archive: plain layers, the compression they come in, and its configuration."""

    layers: list[bytes]
    tags: list[str] = field(default_factory=list)
    compression: str = ""
    run: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def blobs(self) -> list[bytes]:
        return [compress(layer, self.compression) for layer in self.layers]

    @property
    def config(self) -> bytes:
        document = {
            "architecture": HOST_ARCHITECTURE,
            "os": "linux",
            "created": CREATED,
            "config": self.run,
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in self.layers]},
            "history": [{"created": CREATED, "created_by": f"step {n}"} for n in range(len(self.layers))],
            **self.extra,
        }
        return json.dumps(document).encode()

    @property
    def id(self) -> str:
        return digest(self.config)

    @property
    def manifest(self) -> bytes:
        suffix = f"+{self.compression}" if self.compression else ""
        layers = [
            {
                "mediaType": f"application/vnd.oci.image.layer.v1.tar{suffix}",
                "digest": digest(blob),
                "size": len(blob),
            }
            for blob in self.blobs
        ]
        config = {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": self.id,
            "size": len(self.config),
        }
        return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}).encode()

    def oci_files(self) -> dict[str, bytes]:
        return {"blobs/" + digest(blob).replace(":", "/"): blob for blob in (self.manifest, self.config, *self.blobs)}

    def descriptor(self, name: str = "", **more: Any) -> dict[str, Any]:
        entry = {"mediaType": OCI_MANIFEST, "digest": digest(self.manifest), "size": len(self.manifest), **more}
        if name:
            entry["annotations"] = {"io.containerd.image.name": name}
        return entry


def pack(files: dict[str, bytes]) -> bytes:
    return make_tar(File(name, data) for name, data in files.items())


def docker_save(*images: Image) -> bytes:
    """As `docker save` wrote it up to version 24."""
    files: dict[str, bytes] = {}
    table = []
    for image in images:
        paths = []
        for number, blob in enumerate(image.blobs):
            path = f"{image.id[7:23]}{number}/layer.tar"
            files[path] = blob
            paths.append(path)
        config = image.id.removeprefix("sha256:") + ".json"
        files[config] = image.config
        table.append({"Config": config, "RepoTags": image.tags or None, "Layers": paths})
    files["manifest.json"] = json.dumps(table).encode()
    files["repositories"] = b"{}"
    return pack(files)


def oci_layout(*images: Image, index: dict[str, Any] | None = None, extra: dict[str, bytes] | None = None) -> bytes:
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    descriptors = []
    for image in images:
        files |= image.oci_files()
        descriptors += [image.descriptor(tag) for tag in image.tags or [""]]
    document = index or {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}
    files["index.json"] = json.dumps(document).encode()
    return pack(files | (extra or {}))


async def chunked(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def load(store: ImageStore, archive: bytes) -> list[LoadedImage]:
    return [image async for image in store.load(chunked(archive))]


async def save(store: ImageStore, *names: str) -> bytes:
    return b"".join([chunk async for chunk in store.save(list(names))])
