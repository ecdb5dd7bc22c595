"""Images made for tests and demonstrations: the same bytes each time, and sound in each format."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import debian_image
import pytest
from image_archive import Format, Image, Layer, write


def _image() -> Image:
    lower = Layer()
    lower.directory("tmp", 0o1777)
    lower.file("bin", b"program", 0o755)
    lower.hard_link("sh", "bin")
    upper = Layer()
    upper.symbolic_link("link", "tmp")
    return Image("small:1", (lower.finish(), upper.finish()), {"Cmd": ["sh"]})


def _members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        return {name: file.read() for name, file in files.items() if file}


@pytest.mark.parametrize("layout", list(Format))
def test_same_content_gives_the_same_bytes(tmp_path: Path, layout: Format) -> None:
    for name in ("a.tar", "b.tar"):
        write(_image(), tmp_path / name, layout)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


@pytest.mark.parametrize("layout", [Format.DOCKER, Format.BOTH])
def test_docker_manifest_leads_to_config_and_layers(tmp_path: Path, layout: Format) -> None:
    write(_image(), tmp_path / "image.tar", layout)
    members = _members(tmp_path / "image.tar")
    (manifest,) = json.loads(members["manifest.json"])
    assert manifest["RepoTags"] == ["small:1"]
    config = json.loads(members[manifest["Config"]])
    diff_ids = [f"sha256:{hashlib.sha256(members[layer]).hexdigest()}" for layer in manifest["Layers"]]
    assert config["rootfs"]["diff_ids"] == diff_ids
    assert config["config"]["Cmd"] == ["sh"]


@pytest.mark.parametrize("layout", [Format.OCI, Format.BOTH])
def test_layout_leads_to_config_and_layers(tmp_path: Path, layout: Format) -> None:
    write(_image(), tmp_path / "image.tar", layout)
    members = _members(tmp_path / "image.tar")

    def blob(descriptor: dict[str, Any]) -> bytes:
        algorithm, _, digest = descriptor["digest"].partition(":")
        data = members[f"blobs/{algorithm}/{digest}"]
        assert hashlib.sha256(data).hexdigest() == digest
        assert len(data) == descriptor["size"]
        return data

    (entry,) = json.loads(members["index.json"])["manifests"]
    manifest = json.loads(blob(entry))
    assert json.loads(blob(manifest["config"]))["os"] == "linux"
    assert [blob(layer) for layer in manifest["layers"]] == list(_image().layers)
    assert ("manifest.json" in members) == (layout is Format.BOTH)


def test_busybox_has_what_containers_expect(busybox: Path) -> None:
    members = _members(busybox)
    (manifest,) = json.loads(members["manifest.json"])
    with tarfile.open(fileobj=io.BytesIO(members[manifest["Layers"][0]])) as layer:
        links = {member.name for member in layer if member.islnk()}
        assert {"bin/sh", "bin/cat", "bin/sleep", "bin/dd", "bin/id", "bin/sha256sum"} <= links
        passwd = layer.extractfile("etc/passwd")
        assert passwd
        assert {b"root", b"daemon", b"nobody"} <= {line.split(b":")[0] for line in passwd}
        assert layer.getmember("tmp").mode == 0o1777


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    from busybox_image import build

    build(tmp_path / "busybox.tar")
    return tmp_path / "busybox.tar"


@pytest.mark.slow
@pytest.mark.skipif(bool(debian_image.missing()), reason=debian_image.missing() or "-")
def test_debian_image_has_glibc_and_bash() -> None:
    members = _members(debian_image.ensure())
    (manifest,) = json.loads(members["manifest.json"])
    with tarfile.open(fileobj=io.BytesIO(members[manifest["Layers"][0]])) as layer:
        names = set(layer.getnames())
    assert "usr/bin/bash" in names or "bin/bash" in names
    assert any(name.endswith("/libc.so.6") for name in names)
    assert not any(name.startswith("var/cache/apt/") for name in names)
