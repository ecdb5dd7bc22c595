"""Loading: every format that is about, and what comes to lie on the disk."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from storage_archives import (
    OCI_INDEX,
    File,
    Image,
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

from portlayer.drivers.base import SquashfsCompression
from portlayer.drivers.qemu import LocalDatastore
from portlayer.errors import InvalidArgumentError
from portlayer.storage import ImageStore

BASE = make_tar([directory("bin"), File("bin/sh", b"#!", mode=0o755), File("etc/passwd", b"root")])


@pytest.mark.parametrize("outer", ["", "gzip", "zstd"])
@pytest.mark.parametrize("inner", ["", "gzip", "zstd"])
@pytest.mark.parametrize("form", [docker_save, oci_layout])
async def test_every_format_and_compression(
    store: ImageStore, state: State, outer: str, inner: str, form: Callable[..., bytes]
) -> None:
    image = Image([BASE], ["docker.io/library/box:1"], inner, run={"Cmd": ["sh"], "Env": ["A=b"]})
    loaded = await load(store, compress(form(image), outer))
    assert [(one.image_id, one.tags) for one in loaded] == [(image.id, ("box:1",))]
    stored = store.get("box:1")
    assert stored.config_json == image.config
    assert stored.diff_ids == (digest(BASE),)
    assert (stored.config.cmd, stored.config.env) == (("sh",), ("A=b",))
    assert stored.size_bytes == 6
    assert stored.created_unix_ns == 1714979289123456789
    assert state.disk(store, "box:1").names == {"/bin", "/bin/sh", "/etc", "/etc/passwd"}
    assert state.disk(store, "box:1").read("bin/sh") == b"#!"
    assert not list((state.path / "tmp").iterdir())


async def test_oci_keeps_the_manifest_as_it_is(store: ImageStore) -> None:
    image = Image([BASE], ["quay.io/a/b:c"], "gzip")
    await load(store, oci_layout(image))
    stored = store.get("quay.io/a/b:c")
    assert stored.manifest_digest == digest(image.manifest)
    assert stored.digests == (f"quay.io/a/b@{digest(image.manifest)}",)


async def test_both_formats_in_one_archive(store: ImageStore) -> None:
    """Docker 25 and later: the layout has the digests, the table may have more names."""
    image = Image([BASE], ["docker.io/library/box:1"])
    blobs = [f"blobs/sha256/{digest(blob)[7:]}" for blob in image.blobs]
    table = [{"Config": f"blobs/sha256/{image.id[7:]}", "RepoTags": ["box:1", "box:2"], "Layers": blobs}]
    (loaded,) = await load(store, oci_layout(image, extra={"manifest.json": json.dumps(table).encode()}))
    assert loaded.tags == ("box:1", "box:2")
    assert store.get("box:2").manifest_digest == digest(image.manifest)


async def test_two_images_that_share_layers(store: ImageStore, state: State) -> None:
    top = make_tar([File("top", b"1")])
    one, two = Image([BASE], ["one:1"]), Image([BASE, top], ["two:1"])
    same = Image([BASE], ["three:1"], run={"Cmd": ["other"]})
    await load(store, docker_save(one, two, same))
    assert len(store.list()) == 3
    # Same layers, same disk.
    assert store.get("one:1").image_disk == store.get("three:1").image_disk != store.get("two:1").image_disk
    assert len(list((state.path / "disks").iterdir())) == 2
    assert "/top" in state.disk(store, "two:1").names


async def test_layers_linked_inside_the_archive(store: ImageStore) -> None:
    """Docker up to 24 writes a repeated layer as a symbolic link to the first."""
    image = Image([BASE, BASE], ["twice:1"])
    table = [{"Config": "c.json", "RepoTags": image.tags, "Layers": ["a/layer.tar", "b/layer.tar"]}]
    archive = make_tar(
        [
            File("a/layer.tar", BASE),
            symlink("b/layer.tar", "../a/layer.tar"),
            File("c.json", image.config),
            File("manifest.json", json.dumps(table).encode()),
        ]
    )
    await load(store, archive)
    assert store.get("twice:1").diff_ids == (digest(BASE),) * 2


async def test_the_host_platform_is_chosen(store: ImageStore) -> None:
    ours = Image([BASE])
    other = Image([BASE], extra={"architecture": "s390x"})
    nested = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            other.descriptor(platform={"os": "linux", "architecture": "s390x"}),
            ours.descriptor(platform={"os": "linux", "architecture": "amd64"}),
            ours.descriptor(platform={"os": "unknown", "architecture": "unknown"})
            | {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
        ],
    }
    data = json.dumps(nested).encode()
    index = {
        "manifests": [
            {
                "mediaType": OCI_INDEX,
                "digest": digest(data),
                "size": len(data),
                "annotations": {"io.containerd.image.name": "docker.io/library/many:1"},
            }
        ]
    }
    files = ours.oci_files()  # the other platform's blobs are not there, as `docker save --platform` leaves them out
    archive = oci_layout(index=index, extra=files | {"blobs/" + digest(data).replace(":", "/"): data})
    (loaded,) = await load(store, archive)
    assert (loaded.image_id, loaded.tags) == (ours.id, ("many:1",))


async def test_no_image_for_this_host(store: ImageStore) -> None:
    images = [Image([BASE], extra={"architecture": name}) for name in ("s390x", "riscv64")]
    manifests = [
        image.descriptor("a:1", platform={"os": "linux", "architecture": f"x{n}"}) for n, image in enumerate(images)
    ]
    with pytest.raises(InvalidArgumentError, match=r"no image for linux/\w+ as a:1 \(it has: linux/x0, linux/x1\)"):
        await load(store, oci_layout(*images, index={"manifests": manifests}))


async def test_a_tag_moves_to_the_newer_image(store: ImageStore) -> None:
    old, new = Image([BASE], ["box:1"]), Image([BASE], ["box:1"], run={"Cmd": ["new"]})
    await load(store, docker_save(old))
    (loaded,) = await load(store, docker_save(new))
    assert loaded.notes == (f"The image box:1 already exists, renaming the old one with ID {old.id} to empty string",)
    assert store.get("box:1").id == new.id
    assert store.get(old.id).tags == ()


async def test_loading_again_changes_nothing(store: ImageStore, state: State) -> None:
    archive = docker_save(Image([BASE], ["box:1"]))
    await load(store, archive)
    before = state.files()
    await load(store, archive)
    assert state.files() == before
    assert len(store.list()) == 1


async def test_an_untagged_archive_keeps_the_image_by_its_id(store: ImageStore) -> None:
    image = Image([BASE])
    await load(store, docker_save(image))
    assert store.get(image.id[7:19]).tags == ()


async def test_an_image_without_layers(store: ImageStore, state: State) -> None:
    await load(store, docker_save(Image([], ["scratch:1"])))
    assert state.disk(store, "scratch:1").names == set()


async def test_layers_are_laid_over_each_other(store: ImageStore, state: State) -> None:
    lower = make_tar(
        [
            directory("keep"),
            File("keep/old", b"old"),
            File("keep/gone", b"x"),
            directory("opaque"),
            File("opaque/old", b"x"),
            directory("opaque/deep"),
            File("opaque/deep/old", b"x"),
            directory("whole"),
            File("whole/old", b"x"),
            symlink("link", "keep"),
            File("becomes-directory", b"x"),
            directory("becomes-file"),
            File("becomes-file/old", b"x"),
            File("shared", b"shared", mode=0o600),
            hard_link("shared-too", "shared"),
        ]
    )
    upper = make_tar(
        [
            directory("keep", mode=0o700),
            File("keep/.wh.gone"),
            File("opaque/new", b"new"),
            File("opaque/.wh..wh..opq"),  # after the new file, which stays all the same
            File("whole/new", b"y"),
            File(".wh.whole"),
            File("link/inside", b"not in keep"),
            File("becomes-directory/new", b"x"),
            File("becomes-file", b"file"),
            hard_link("shared-three", "./shared"),
            File(".wh.shared"),
            File(".wh..wh.plnk", b"aufs"),
            File(".wh.never-there"),
        ]
    )
    await load(store, docker_save(Image([lower, upper], ["layers:1"])))
    disk = state.disk(store, "layers:1")
    files = disk.files
    assert disk.names == {
        "/keep",
        "/keep/old",
        "/opaque",
        "/opaque/new",
        "/whole",
        "/whole/new",
        "/link",
        "/link/inside",
        "/becomes-directory",
        "/becomes-directory/new",
        "/becomes-file",
        "/shared-too",
        "/shared-three",
    }
    assert files["/keep"].mode == "drwx------"
    assert files["/link"].mode.startswith("d")
    assert disk.read("shared-three") == b"shared"
    assert files["/shared-three"].mode == "-rw-------"


async def test_a_symbolic_link_of_the_same_layer_is_followed_inside_the_root(store: ImageStore, state: State) -> None:
    layer = make_tar(
        [
            directory("usr/lib"),
            symlink("lib", "../../../usr/lib"),  # .. of the root is the root
            File("lib/libc.so", b"c"),
            symlink("usr/abs", "/usr/lib"),
            File("usr/abs/other.so", b"o"),
        ]
    )
    await load(store, docker_save(Image([layer], ["links:1"])))
    names = state.disk(store, "links:1").names
    assert {"/usr/lib/libc.so", "/usr/lib/other.so"} <= names
    assert state.disk(store, "links:1").files["/lib"].target == "../../../usr/lib"


@pytest.mark.skipif(os.geteuid() != 0, reason="to unpack owners, devices and attributes one must be root")
async def test_all_that_a_file_can_have(store: ImageStore, state: State) -> None:
    long_name = "d" * 200 + "/" + "f" * 250
    layer = make_tar(
        [
            directory("./", mode=0o711),
            File("setuid", b"x", mode=0o4755, uid=1000, gid=3_000_000),
            File("/absolute", b"x"),
            File("a/../b/./c", b"clean"),
            File("null", type=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
            File("disk", type=tarfile.BLKTYPE, device=(8, 1)),
            File("pipe", type=tarfile.FIFOTYPE),
            directory("d" * 200),
            File(long_name, b"long"),
            symlink("far", "x" * 300),
            File("attributes", b"x", xattrs={"user.colour": "blue", "trusted.overlay.opaque": "y", "system.x": "z"}),
            File("capable", b"x", xattrs={"security.capability": "\x01\0\0\x02\0\x20" + "\0" * 14}),
            File("bär\n", b"utf-8 and a line feed"),
            File("hardened", b"h"),
            hard_link("hardened2", "/hardened"),
            File("old", b"", mtime=-5),
        ]
    )
    await load(store, docker_save(Image([layer], ["all:1"])))
    disk = state.disk(store, "all:1")
    files = disk.files
    assert files["/"].mode == "drwx--x--x"
    assert (files["/setuid"].mode, files["/setuid"].uid, files["/setuid"].gid) == ("-rwsr-xr-x", 1000, 3_000_000)
    assert {"/absolute", "/b/c", "/" + long_name} <= disk.names
    assert (files["/null"].mode, files["/null"].size) == ("crw-rw-rw-", "1,3")
    assert (files["/disk"].mode[0], files["/disk"].size) == ("b", "8,1")
    assert files["/pipe"].mode[0] == "p"
    assert files["/far"].target == "x" * 300
    out = state.path / "out"
    disk.unpack(out)
    assert os.listxattr(out / "attributes") == ["user.colour"]
    assert os.getxattr(out / "capable", "security.capability")[:6] == b"\x01\0\0\x02\0\x20"
    assert (out / "bär\n").read_bytes() == b"utf-8 and a line feed"
    assert (out / "hardened").stat().st_ino == (out / "hardened2").stat().st_ino
    assert (out / "old").stat().st_mtime == 0


async def test_a_big_file_comes_through_whole(store: ImageStore, state: State) -> None:
    data = os.urandom(1 << 20) * 24 + b"end"
    await load(store, docker_save(Image([make_tar([File("big", data)])], ["big:1"], "gzip")))
    assert state.disk(store, "big:1").read("big") == data


async def test_disks_are_reproducible(state: State) -> None:
    """Whatever happened before, and whenever: the disk is a matter of the layers alone."""
    layers = [BASE, make_tar([File(f"f{n}", os.urandom(2000), mtime=n) for n in range(200)])]
    disks = []
    for name in ("a", "b"):
        other = State(state.path / name, type(state.datastore)(state.path / name))
        store = other.store()
        await store.open()
        await load(store, oci_layout(Image(layers, ["x:1"], "gzip", run={"Cmd": [name]})))
        disks.append(other.disk(store, "x:1").path.read_bytes())
    assert disks[0] == disks[1]


def gnu_tar(source: Path, archive: Path, options: list[str]) -> None:
    subprocess.run(["tar", "-S", "-C", str(source), *options, "-cf", str(archive), "."], check=True)


async def test_gnu_tar_and_sparse_files(store: ImageStore, state: State, tmp_path: Path) -> None:
    """What GNU tar itself writes, in each of its ways."""
    source = tmp_path / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        for number in range(40):
            file.seek(number * 1_000_000)
            file.write(b"%02d" % number)
        file.truncate(41_000_000)
    (source / ("n" * 150)).write_bytes(b"long name")
    wanted = (source / "sparse").read_bytes()
    forms = ["--format=gnu", "--format=pax --sparse-version=0.0", "--format=pax --sparse-version=0.1"]
    forms += ["--format=pax --sparse-version=1.0"]
    for number, form in enumerate(forms):
        archive = tmp_path / f"{number}.tar"
        gnu_tar(source, archive, form.split())
        assert archive.stat().st_size < 1_000_000
        await load(store, docker_save(Image([archive.read_bytes()], [f"sparse:{number}"])))
        disk = state.disk(store, f"sparse:{number}")
        assert disk.read("sparse") == wanted, form
        assert disk.names == {"/sparse", "/" + "n" * 150}


async def test_old_and_gnu_formats_of_the_standard_library(store: ImageStore, state: State) -> None:
    files = [File("dir/", type=tarfile.DIRTYPE), File("p" * 90 + "/" + "q" * 90, b"1"), File("big-id", uid=2**31)]
    layer = make_tar(files, tarfile.GNU_FORMAT)
    ustar = make_tar(files[:2], tarfile.USTAR_FORMAT)
    await load(store, docker_save(Image([layer], ["gnu:1"]), Image([ustar], ["ustar:1"])))
    assert state.disk(store, "gnu:1").files["/big-id"].uid == 2**31
    assert "/" + "p" * 90 + "/" + "q" * 90 in state.disk(store, "ustar:1").names


async def test_gzip_of_several_members(store: ImageStore) -> None:
    archive = docker_save(Image([BASE], ["parts:1"]))
    await load(store, gzip.compress(archive[:1000]) + gzip.compress(archive[1000:]))
    assert store.get("parts:1")


async def test_last_of_two_members_with_one_name_counts(store: ImageStore) -> None:
    image = Image([BASE], ["box:1"])
    whole = docker_save(image)
    files = pack({"manifest.json": b"broken"})[:1024]
    await load(store, files + whole)
    assert store.get("box:1").id == image.id


@pytest.mark.parametrize("compression", list(SquashfsCompression))
async def test_the_datastore_says_how_disks_are_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: SquashfsCompression
) -> None:
    """Guest kernels differ in what they read. The disk is the same each time it is made."""
    monkeypatch.setattr(LocalDatastore, "squashfs_compression", compression)
    disks = []
    for name in ("one", "two"):
        (path := tmp_path / name).mkdir()
        state = State(path, LocalDatastore(path))
        store = state.store()
        await store.open()
        await load(store, docker_save(Image([make_tar([File("f", b"12345" * 1000)])], ["box:1"])))
        disks.append(state.disk(store, "box:1"))
    assert disks[0].path.read_bytes() == disks[1].path.read_bytes()
    assert disks[0].read("f") == b"12345" * 1000
    assert disks[0].compression == compression
