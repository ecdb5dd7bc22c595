"""Archives that are broken or mean harm: each is refused with a sentence that says what and where, nothing is left."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage_archives import (
    OCI_INDEX,
    File,
    Image,
    chunked,
    compress,
    digest,
    directory,
    docker_save,
    hard_link,
    load,
    make_tar,
    oci_layout,
    pack,
    symlink,
)
from storage_state import State

from portlayer.errors import InvalidArgumentError, PortLayerError
from portlayer.storage import ImageStore, Limits
from portlayer.storage.tar import TarReader
from portlayer.storage.tree import RootTree, walk
from portlayer.v1.storage_pb2 import ImportImageOptions

BASE = make_tar([directory("bin"), File("bin/sh", b"#!" * 3000, mode=0o755)])
EMPTY = {"images/oci-layout"}


async def refused(store: ImageStore, state: State, archive: bytes, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        await load(store, archive)
    assert state.files() == EMPTY
    assert store.list() == []


LAYERS: dict[str, tuple[list[File], str]] = {
    "out": ([File("a/../../b")], r"leads out of the root: 'a/../../b'"),
    "out, absolute": ([File("/../b")], "leads out of the root"),
    "hard link out": ([hard_link("a", "../../etc/shadow")], "leads out of the root"),
    "hard link to nothing": ([hard_link("a", "etc/shadow")], "hard link to 'etc/shadow', which does not exist: 'a'"),
    "hard link to a directory": ([directory("d"), hard_link("a", "d")], "hard link to the directory 'd'"),
    "hard link behind links out": (
        [symlink("s", "/../../etc"), hard_link("a", "s/shadow")],
        "'s/shadow', which does not exist",
    ),
    "links in a circle": ([symlink("a", "b"), symlink("b", "a"), File("a/c")], "too many symbolic links"),
    "below a file": ([File("a"), File("a/b")], "below something that is no directory: 'a/b'"),
    "root is a link": ([symlink(".", "/etc")], "root that is no directory"),
    "long part": ([File("x" * 256)], "name of 256 bytes"),
    "long path": ([File("x/" * 2049 + "y")], "name of 4099 bytes"),
    "device beyond": ([File("d", type=tarfile.CHRTYPE, device=(5000, 1))], "device number"),
    "below a whiteout": ([File(".wh.a/b")], "below a whiteout: '.wh.a/b'"),
    "whiteout of nothing": ([File("a/.wh.")], "whiteout of nothing"),
    "whiteout of the parent": ([File("a/.wh...")], "whiteout of nothing"),
    "socket or worse": ([File("x", type=b"9")], "unknown type b'9': 'x'"),
    "continued elsewhere": ([File("x", type=b"M")], "unknown type b'M'"),
}


@pytest.mark.parametrize("case", LAYERS)
async def test_layers_that_cannot_be_meant(store: ImageStore, state: State, case: str) -> None:
    files, message = LAYERS[case]
    await refused(store, state, docker_save(Image([BASE], ["good:1"]), Image([make_tar(files)], ["bad:1"])), message)


async def test_links_can_never_reach_the_host(store: ImageStore, state: State) -> None:
    """The classic attack: a link to a host's path, then a file through it."""
    (state.path / "victim").mkdir()
    layer = make_tar([symlink("out", str(state.path / "victim")), File("out/owned", b"x")])
    await load(store, docker_save(Image([layer], ["attack:1"])))
    assert list((state.path / "victim").iterdir()) == []
    assert f"{state.path}/victim/owned" in state.disk(store, "attack:1").names


@pytest.mark.parametrize("outer", ["", "gzip", "zstd"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
async def test_truncated_archives(store: ImageStore, state: State, outer: str, share: float) -> None:
    archive = compress(docker_save(Image([BASE], ["box:1"])).rstrip(b"\0") + bytes(1024), outer)
    await refused(store, state, archive[: int(len(archive) * share)], "truncated|no tar archive|has broken|ends")


async def test_an_archive_cut_between_members_is_truncated(store: ImageStore, state: State) -> None:
    archive = docker_save(Image([BASE], ["box:1"]))
    await refused(store, state, archive[: len(archive.rstrip(b"\0")) // 512 * 512 + 512], "without tar's end marker")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello, this is no archive at all", "truncated"),
        (b"x" * 5000, "is no tar archive"),
        (b"BZh91AY" + b"x" * 500, "compressed with bzip2; gzip, zstd and plain tar can be read"),
        (b"\xfd7zXZ\0" + b"x" * 500, "compressed with xz"),
        (b"\x1f\x8b\x08" + b"x" * 500, "cannot be decompressed|compressed data ends early"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 500, "cannot be decompressed"),
        (pack({"hello": b"x"}), "neither manifest.json nor index.json"),
        (pack({"manifest.json": b"[]"}), "holds no images"),
        (pack({"index.json": b'{"manifests": []}'}), "holds no images"),
        (pack({"manifest.json": b"{"}), "manifest.json is not JSON"),
        (pack({"manifest.json": b"[" * 100_000}), "manifest.json is not JSON"),
        (pack({"manifest.json": b'{"a": 1}'}), "manifest.json must be a list, not dict"),
        (pack({"manifest.json": b"[1]"}), r"manifest.json\[0\] must be an object, not int"),
        (pack({"manifest.json": b'[{"Config": 5}]'}), r"manifest.json\[0\]: Config must be a string"),
        (pack({"manifest.json": b'[{"Config": "c"}]'}), "has no file 'c'"),
        (pack({"manifest.json": b'[{"Config": "../../etc/shadow"}]'}), "leads out of it"),
        (pack({"manifest.json": b'[{"Config": "a\\u0000b"}]'}), "character that no text may have"),
        (pack({"manifest.json": b'[{"Config": "\\ud800"}]'}), "character that no text may have"),
        (make_tar([symlink("manifest.json", "/etc/passwd")]), "neither manifest.json nor"),
        (make_tar([symlink("manifest.json", "manifest.json")]), "link in a circle"),
        (make_tar([File("../x", b"1")]), "leads out of it"),
    ],
)
async def test_things_that_are_no_image_archive(store: ImageStore, state: State, data: bytes, message: str) -> None:
    await refused(store, state, data, message)


def broken_config(**changes: Any) -> bytes:
    return docker_save(Image([BASE], ["bad:1"], **changes))


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (broken_config(run={"Cmd": "sh"}), "Cmd must be a list, not str"),
        (broken_config(run={"Cmd": [1]}), r"Cmd\[0\] must be a string, not int"),
        (broken_config(run={"Env": ["=x"]}), "sets no variable"),
        (broken_config(run={"Labels": ["x"]}), "Labels must be an object"),
        (broken_config(run={"Labels": {"a": 1}}), "must be a string"),
        (broken_config(run={"User": {}}), "User must be a string"),
        (broken_config(run={"WorkingDir": "a\0b"}), "character that no text may have"),
        (broken_config(run=[]), "config must be an object"),
        (broken_config(extra={"os": "windows"}), 'image operating system "windows" cannot be used on this platform'),
        (broken_config(extra={"created": "yesterday"}), "'yesterday' is no time"),
        (broken_config(extra={"created": "2024-13-01T00:00:00Z"}), "is no time"),
        (broken_config(extra={"created": 5}), "created must be a string"),
        (broken_config(extra={"history": [{"empty_layer": "no"}]}), "empty_layer must be true or false"),
        (broken_config(extra={"rootfs": None}), "speaks of 0 layers, the archive has 1"),
        (broken_config(extra={"rootfs": {"type": "zip"}}), "is of type 'zip'"),
        (broken_config(extra={"rootfs": {"diff_ids": ["sha256:../../x"]}}), "is no sha256 digest"),
        (broken_config(extra={"rootfs": {"diff_ids": [digest(b"")]}}), "not sha256:e3b0.* as configuration"),
        (docker_save(Image([BASE], ["Bad:1"])), r"repository name \(library/Bad\) must be lowercase"),
        (docker_save(Image([BASE], ["bad:" + "x" * 129])), "invalid reference format"),
    ],
)
async def test_configurations_of_the_wrong_kind(store: ImageStore, state: State, archive: bytes, message: str) -> None:
    await refused(store, state, archive, message)


def tampered(change: Callable[[Image, dict[str, bytes]], None]) -> bytes:
    image = Image([BASE], ["docker.io/library/box:1"], "gzip")
    files = {"index.json": json.dumps({"manifests": [image.descriptor(image.tags[0])]}).encode(), **image.oci_files()}
    change(image, files)
    return pack(files)


def blob_name(data: bytes) -> str:
    return "blobs/" + digest(data).replace(":", "/")


def with_index(**descriptor: Any) -> Callable[[Image, dict[str, bytes]], None]:
    def change(image: Image, files: dict[str, bytes]) -> None:
        files["index.json"] = json.dumps({"manifests": [image.descriptor() | descriptor]}).encode()

    return change


def swap(which: str) -> Callable[[Image, dict[str, bytes]], None]:
    def change(image: Image, files: dict[str, bytes]) -> None:
        files[blob_name({"layer": image.blobs[0], "config": image.config, "manifest": image.manifest}[which])] += b" "

    return change


def same_size(image: Image, files: dict[str, bytes]) -> None:
    name = blob_name(image.blobs[0])
    files[name] = files[name][:-1] + b"x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap("manifest"), "has another content than its name says"),
        (swap("config"), "has another content than its name says"),
        (swap("layer"), "bytes, not"),
        (same_size, "layer sha256:[0-9a-f]+ has another content than its digest says"),
        (lambda image, files: files.pop(blob_name(image.blobs[0])), "has no file 'blobs/sha256/"),
        (with_index(digest="sha512:" + "0" * 128), "has no sha256 digest"),
        (with_index(digest="sha256:../../../../etc/shadow"), "has no sha256 digest"),
        (with_index(size=-1), "size must be a whole number"),
        (with_index(size=True), "size must be a whole number"),
        (with_index(mediaType="application/vnd.docker.distribution.manifest.v1+json"), "no image for|holds no images"),
        (with_index(mediaType=5), "mediaType must be a string"),
        (with_index(annotations={"io.containerd.image.name": "a@b"}), "invalid reference format"),
    ],
)
async def test_digests_and_descriptors(
    store: ImageStore, state: State, change: Callable[[Image, dict[str, bytes]], None], message: str
) -> None:
    await refused(store, state, tampered(change), message)


async def test_indexes_nested_too_deep(store: ImageStore, state: State) -> None:
    image = Image([BASE])
    entry, files = image.descriptor(), image.oci_files()
    for _ in range(6):
        data = json.dumps({"mediaType": OCI_INDEX, "manifests": [entry]}).encode()
        files[blob_name(data)] = data
        entry = {"mediaType": OCI_INDEX, "digest": digest(data), "size": len(data)}
    await refused(store, state, oci_layout(index={"manifests": [entry]}, extra=files), "nests indexes")


def sparse_header(name: bytes, real_size: int) -> bytes:
    """A GNU sparse file that is one hole."""
    info = tarfile.TarInfo(name.decode())
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"%011o\0" % real_size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


async def test_absurd_sizes(state: State) -> None:
    store = state.store(Limits(unpacked_bytes=1 << 20))
    await store.open()
    hole = sparse_header(b"hole", 8 << 30) + bytes(1024)
    await refused(store, state, docker_save(Image([hole])), "declares files of 8589934592 bytes in all.*: 'hole'")
    info = tarfile.TarInfo("huge")
    info.size = 1 << 60
    huge = info.tobuf(tarfile.GNU_FORMAT) + bytes(4096)
    await refused(store, state, docker_save(Image([huge])), f"declares {1 << 60} bytes, of which .* are missing")
    await refused(store, state, huge, f"declares {1 << 60} bytes, of which")


async def test_too_many_of_anything(state: State) -> None:
    store = state.store(Limits(entries=5, layers=3, images=2, archive_members=20, document_bytes=4000))
    await store.open()
    many = make_tar([File(f"f{n}") for n in range(3)])
    other = make_tar([File(f"g{n}") for n in range(3)])
    await refused(store, state, docker_save(Image([many, other])), "more than 5 entries")
    await refused(store, state, docker_save(Image([many] * 4)), "has 4 layers; 3 are the most")
    images = [Image([many], run={"User": str(n)}) for n in range(3)]
    await refused(store, state, docker_save(*images), "holds 3 images; 2 are the most")
    await refused(store, state, pack({f"f{n}": b"" for n in range(21)}), "more than 20 members")
    await refused(store, state, docker_save(Image([many], run={"User": "x" * 4000})), "4000 are the most")


async def test_huge_extended_headers(store: ImageStore, state: State) -> None:
    layer = make_tar([File("x", xattrs={"user.big": "y" * (2 << 20)})])
    await refused(store, state, docker_save(Image([layer])), "bytes of extended headers for one entry")


async def test_a_bomb_ends_before_the_disk_is_full(state: State) -> None:
    free = os.statvfs(state.path)
    store = state.store(Limits(reserve_bytes=free.f_bavail * free.f_frsize + (1 << 30)))
    await store.open()
    with pytest.raises(PortLayerError, match=r"no space left on device: .* which must stay free"):
        await load(store, compress(docker_save(Image([BASE])), "gzip"))
    assert state.files() == EMPTY


async def test_a_truncated_root_file_system_is_not_imported(store: ImageStore, state: State) -> None:
    for data in (BASE[:700], BASE[:1024], b"", compress(BASE, "gzip")[:-9], compress(BASE, "zstd")[:-9]):
        with pytest.raises(InvalidArgumentError, match="truncated"):
            await store.import_rootfs(ImportImageOptions(), chunked(data))
        assert state.files() == EMPTY


def read_tar(data: bytes) -> RootTree:
    tree = RootTree(max_entries=1000, max_bytes=1 << 30)
    tree.apply(TarReader(io.BytesIO(data), "the layer", Limits(), lambda: None), "the layer")
    return tree


SEED = make_tar(
    [
        directory("d"),
        File("d/f", b"content"),
        File("x" * 150, b"long", xattrs={"user.a": "b"}),
        symlink("s", "d"),
        hard_link("h", "d/f"),
    ]
) + sparse_header(b"hole", 100)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.binary(min_size=1, max_size=12)), max_size=4), st.data())
def test_a_damaged_layer_is_read_or_refused(changes: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """Bytes changed anywhere, checksums made right again or not: a tree or InvalidArgumentError, and nothing else."""
    damaged = bytearray(SEED)
    for position, replacement in changes:
        damaged[position : position + len(replacement)] = replacement
        if data.draw(st.booleans()):
            block = position // 512 * 512
            header = damaged[block : block + 512]
            header[148:156] = b" " * 8
            damaged[block + 148 : block + 156] = b"%06o\0 " % sum(header)
    with contextlib.suppress(InvalidArgumentError):
        read_tar(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))


names = st.lists(st.sampled_from(["a", "b", ".wh.a", ".wh.b", ".wh..wh..opq", "..", ".", ""]), min_size=1, max_size=4)
entries = st.builds(
    lambda parts, kind, link: File("/".join(parts) or ".", type=kind, link="/".join(link)),
    names,
    st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
    names,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(entries, max_size=8), min_size=1, max_size=3))
def test_any_mixture_of_entries_gives_a_tree_inside_the_root(layers: list[list[File]]) -> None:
    tree = RootTree(max_entries=1000, max_bytes=1 << 30)
    try:
        for layer in layers:
            tree.apply(TarReader(io.BytesIO(make_tar(layer)), "the layer", Limits(), lambda: None), "the layer")
    except InvalidArgumentError:
        return
    seen: set[bytes] = set()
    for path, node in walk(tree.root):
        parts = path.split(b"/")
        assert not {b"", b".", b".."} & set(parts)
        assert not any(part.startswith(b".wh.") for part in parts)
        assert len(parts) == 1 or b"/".join(parts[:-1]) in seen
        assert node.is_directory or not node.children
        seen.add(path)
