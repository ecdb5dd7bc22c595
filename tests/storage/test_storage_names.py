"""References, finding images by them, tagging, and what `docker rmi` and `docker image prune` mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from storage_archives import File, Image, digest, docker_save, load, make_tar
from storage_state import State

from portlayer.errors import ConflictError, InvalidArgumentError, NotFoundError
from portlayer.storage import ImageStore
from portlayer.storage.references import parse, parse_tag

Nobody = Callable[[str], list[str]]
LAYER = make_tar([File("f", b"12345")])
CONTAINER = "c0ffee" * 10 + "0000"


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1", "docker.io/library/busybox:1", "busybox:1"),
        ("docker.io/library/busybox:1", "docker.io/library/busybox:1", "busybox:1"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("library/busybox", "docker.io/library/busybox", "busybox"),
        ("me/busybox", "docker.io/me/busybox", "me/busybox"),
        ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("localhost/x", "localhost/x", "localhost/x"),
        ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"),
        ("Registry/x", "Registry/x", "Registry/x"),
        ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
        ("a.b/c__d/e-f_g.h--i:J_.-1", "a.b/c__d/e-f_g.h--i:J_.-1", "a.b/c__d/e-f_g.h--i:J_.-1"),
        (
            "x:1@sha256:" + "a" * 64,
            "docker.io/library/x:1@sha256:" + "a" * 64,
            "x:1@sha256:" + "a" * 64,
        ),
    ],
)
def test_references(text: str, canonical: str, familiar: str) -> None:
    reference = parse(text)
    assert (str(reference), reference.familiar) == (canonical, familiar)
    assert parse(familiar) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "a:",
        "https://a/b",
        "a/b:c/d",
        "a:tag\n",
        "a:b:c",
        "-a",
        "a/",
        "/a",
        "a//b",
        "a___b",
        "a..b",
        "a b",
        "a:-x",
        "a@b",
        "a@sha256:12",
        "ä",
        "a\n",
    ],
)
def test_invalid_references(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^invalid reference format$"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Box", r"invalid reference format: repository name \(library/Box\) must be lowercase"),
        ("a" * 64, "cannot specify 64-byte hexadecimal strings"),
        ("x" * 256, "repository name must not be more than 255 characters"),
        ("x@sha256:" + "a" * 64, "refusing to create a tag with a digest reference"),
        ("sha256:abc", "refusing to create an ambiguous tag using digest algorithm as name"),
    ],
)
def test_names_that_no_image_can_get(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        parse_tag(text)


async def test_every_way_to_name_an_image(store: ImageStore) -> None:
    image = Image([LAYER], ["box:latest", "quay.io/a/box:2"])
    await load(store, docker_save(image))
    stored = store.get("box")
    assert stored.tags == ("box:latest", "quay.io/a/box:2")
    names = ["box:latest", "library/box", "docker.io/library/box:latest", "quay.io/a/box:2"]
    names += [image.id, image.id[7:], image.id[7:19], image.id[:19], f"box@{stored.manifest_digest}"]
    for name in names:
        assert store.get(name) is stored, name
    with pytest.raises(NotFoundError, match=r"^No such image: box:3$"):
        store.get("box:3")
    with pytest.raises(NotFoundError, match=r"^No such image: foo:latest$"):
        store.get("docker.io/library/foo")
    with pytest.raises(NotFoundError, match=f"^No such image: foo@{digest(b'')}$"):
        store.get(f"foo@{digest(b'')}")
    with pytest.raises(NotFoundError, match=f"^No such image: {digest(b'')}$"):
        store.get(digest(b"")[7:])
    with pytest.raises(NotFoundError, match=f"^No such image: {digest(b'')}$"):
        store.get(digest(b""))
    with pytest.raises(InvalidArgumentError, match=r"^invalid reference format$"):
        store.get("")


async def test_an_ambiguous_id_is_refused(store: ImageStore) -> None:
    images: dict[str, Image] = {}
    number = 0
    while True:
        image = Image([LAYER], run={"User": str(number)})
        if other := images.get(image.id[7]):
            break
        images[image.id[7]] = image
        number += 1
    await load(store, docker_save(image, other))
    with pytest.raises(InvalidArgumentError, match="ambiguous"):
        store.get(image.id[7])
    assert store.get(image.id[7:27]).id == image.id


async def test_tagging_survives_a_restart(store: ImageStore, state: State) -> None:
    image = Image([LAYER], ["box:1"])
    await load(store, docker_save(image))
    tagged, name = await store.tag("box:1", "localhost:5000/other")
    assert (tagged.id, name) == (image.id, "localhost:5000/other:latest")
    again = state.store()
    await again.open()
    for one in (store, again):
        assert one.get("localhost:5000/other").tags == ("box:1", "localhost:5000/other:latest")
    with pytest.raises(NotFoundError, match="No such image: nothing:latest"):
        await store.tag("nothing", "x")
    with pytest.raises(InvalidArgumentError, match="invalid reference format"):
        await store.tag("box:1", "a b")


async def test_a_tag_taken_from_another_image_leaves_it_nameless(store: ImageStore) -> None:
    one, two = Image([LAYER], ["one:1"]), Image([LAYER], ["two:1"], run={"User": "2"})
    await load(store, docker_save(one, two))
    await store.tag("two:1", "one:1")
    assert store.get("one:1").id == two.id
    assert store.get(one.id).tags == ()


async def test_removing_the_last_tag_removes_all_of_the_image(store: ImageStore, state: State, nobody: Nobody) -> None:
    empty = state.files()
    image = Image([LAYER], ["box:1", "box:2"])
    await load(store, docker_save(image))
    removal = await store.remove("box:1", force=False, used_by=nobody)
    assert (removal.untagged, removal.deleted) == ((("box:1", image.id),), ())
    removal = await store.remove("docker.io/library/box:2", force=False, used_by=nobody)
    assert (removal.untagged, removal.deleted) == ((("box:2", image.id),), (image.id,))
    assert removal.reclaimed_bytes > len(LAYER)
    assert state.files() == empty


async def test_removing_by_id(store: ImageStore, nobody: Nobody) -> None:
    image = Image([LAYER], ["box:1", "box:2"])
    await load(store, docker_save(image))
    short = image.id[7:19]
    message = rf"^conflict: unable to delete {short} \(must be forced\) - image is referenced in multiple repositories$"
    with pytest.raises(ConflictError, match=message):
        await store.remove(short, force=False, used_by=nobody)
    removal = await store.remove(short, force=True, used_by=nobody)
    assert [name for name, _ in removal.untagged] == ["box:1", "box:2"]
    assert removal.deleted == (image.id,)
    with pytest.raises(NotFoundError, match="No such image: box:1"):
        await store.remove("box:1", force=True, used_by=nobody)


async def test_removing_by_id_with_one_tag_needs_no_force(store: ImageStore, nobody: Nobody) -> None:
    image = Image([LAYER], ["box:1"])
    await load(store, docker_save(image))
    assert (await store.remove(image.id, force=False, used_by=nobody)).deleted == (image.id,)


async def test_removing_by_digest(store: ImageStore, nobody: Nobody) -> None:
    await load(store, docker_save(Image([LAYER], ["box:1", "box:2", "other:1"])))
    name = f"box@{store.get('box:1').manifest_digest}"
    removal = await store.remove(name, force=False, used_by=nobody)
    assert [name for name, _ in removal.untagged] == ["box:1", "box:2"]
    assert store.get("other:1")


async def test_an_image_with_a_container_keeps_its_disk(store: ImageStore, state: State) -> None:
    image = Image([LAYER], ["box:1"])
    await load(store, docker_save(image))
    short = image.id[7:19]

    def used_by(image_id: str) -> list[str]:
        return [CONTAINER] if image_id == image.id else []

    message = (
        r'^conflict: unable to remove repository reference "box:1" \(must force\) - '
        rf"container {CONTAINER[:12]} is using its referenced image {short}$"
    )
    with pytest.raises(ConflictError, match=message):
        await store.remove("box:1", force=False, used_by=used_by)
    message = rf"^conflict: unable to delete {short} \(must be forced\) - image is being used by .*{CONTAINER[:12]}$"
    with pytest.raises(ConflictError, match=message):
        await store.remove(image.id, force=False, used_by=used_by)
    removal = await store.remove("box:1", force=True, used_by=used_by)
    assert (removal.untagged, removal.deleted) == ((("box:1", image.id),), ())
    assert state.disk(store, image.id).names == {"/f"}
    with pytest.raises(ConflictError, match="cannot be forced"):
        await store.remove(image.id, force=True, used_by=used_by)
    assert (await store.prune(all_unused=True, used_by=used_by)).deleted == ()
    assert (await store.prune(all_unused=False, used_by=lambda _: [])).deleted == (image.id,)


async def test_a_further_tag_goes_although_a_container_uses_the_image(store: ImageStore) -> None:
    await load(store, docker_save(Image([LAYER], ["box:1", "box:2"])))
    removal = await store.remove("box:2", force=False, used_by=lambda _: [CONTAINER])
    assert removal.untagged[0][0] == "box:2"


async def test_images_that_share_layers_do_not_take_them_along(store: ImageStore, state: State, nobody: Nobody) -> None:
    one, two = Image([LAYER], ["one:1"]), Image([LAYER], ["two:1"], run={"User": "2"})
    await load(store, docker_save(one, two))
    await store.remove("one:1", force=False, used_by=nobody)
    assert state.disk(store, "two:1").read("f") == b"12345"
    assert digest(LAYER)[7:] in {name.rpartition("/")[2] for name in state.files()}


async def test_prune(store: ImageStore, nobody: Nobody) -> None:
    named = Image([LAYER], ["box:1"], run={"Labels": {"keep": "yes"}})
    nameless = Image([LAYER], run={"User": "x", "Labels": {"kind": "a"}})
    old = Image([LAYER], run={"User": "y"}, extra={"created": "1999-01-01T00:00:00+02:00"})
    await load(store, docker_save(named, nameless, old))
    year_2000 = 946684800 * 10**9
    removal = await store.prune(all_unused=False, used_by=nobody, created_before_unix_ns=year_2000)
    assert removal.deleted == (old.id,)
    removal = await store.prune(all_unused=False, used_by=nobody, labels=["kind=b"])
    assert removal.deleted == ()
    removal = await store.prune(all_unused=False, used_by=nobody, labels=["kind=a", "kind"])
    assert removal.deleted == (nameless.id,)
    assert removal.reclaimed_bytes > 0
    removal = await store.prune(all_unused=True, used_by=nobody, labels_not=["keep"])
    assert removal.deleted == ()
    removal = await store.prune(all_unused=True, used_by=nobody)
    assert (removal.untagged, removal.deleted) == ((("box:1", named.id),), (named.id,))
    assert (await store.prune(all_unused=True, used_by=nobody)).reclaimed_bytes == 0


async def test_history(store: ImageStore) -> None:
    steps = [
        {"created": "2020-01-01T00:00:00Z", "created_by": "ADD"},
        {"created_by": "CMD", "empty_layer": True},
        {"created_by": "COPY", "comment": "why"},
    ]
    second = make_tar([File("g", b"1234567")])
    image = Image([LAYER, second], ["box:1"], extra={"history": steps})
    await load(store, docker_save(image))
    lines = store.history("box:1")
    assert [(line.id, line.created_by, line.size_bytes, line.comment, line.tags) for line in lines] == [
        (image.id, "COPY", 7, "why", ("box:1",)),
        ("<missing>", "CMD", 0, "", ()),
        ("<missing>", "ADD", 5, "", ()),
    ]
    assert lines[-1].created_unix_ns == 1577836800 * 10**9
    assert store.get("box:1").size_bytes == 12


async def test_history_that_says_too_little(store: ImageStore) -> None:
    await load(store, docker_save(Image([LAYER], ["box:1"], extra={"history": []})))
    assert [line.size_bytes for line in store.history("box:1")] == [5]


async def test_the_newest_image_comes_first(store: ImageStore) -> None:
    images = [Image([LAYER], [f"box:{n}"], extra={"created": f"20{n}-01-01T00:00:00Z"}) for n in (10, 30, 20)]
    await load(store, docker_save(*images))
    assert [image.tags[0] for image in store.list()] == ["box:30", "box:20", "box:10"]
