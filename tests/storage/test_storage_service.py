"""The service on the wire: an in-process grpc.aio server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from storage_archives import File, Image, docker_save, make_tar
from storage_state import State

from portlayer.services.storage import StorageServicer
from portlayer.storage import ImageStore
from portlayer.v1 import storage_pb2 as pb
from portlayer.v1 import storage_pb2_grpc

LAYER = make_tar([File("f", b"12345")])
IMAGE = Image([LAYER], ["box:1", "box:2"], run={"Cmd": ["x"]}, extra={"author": "me"})


@dataclass
class Service:
    stub: storage_pb2_grpc.StorageServiceAsyncStub
    users: dict[str, list[str]] = field(default_factory=dict)
    events: list[tuple[str, str, str, dict[str, str]]] = field(default_factory=list)

    def emit(self, type_: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> None:
        self.events.append((type_, action, actor_id, dict(attributes)))

    async def load(self, archive: bytes) -> list[pb.LoadImagesResponse]:
        async def requests() -> AsyncIterator[pb.LoadImagesRequest]:
            for start in range(0, len(archive), 5000):
                yield pb.LoadImagesRequest(data=archive[start : start + 5000])

        return [response async for response in self.stub.LoadImages(requests())]


@pytest.fixture
async def service(store: ImageStore, tmp_path: Path) -> AsyncIterator[Service]:
    server = grpc.aio.server()
    address = f"unix:{tmp_path}/s"
    async with grpc.aio.insecure_channel(address) as channel:
        one = Service(storage_pb2_grpc.StorageServiceStub(channel))
        servicer = StorageServicer(store, lambda image_id: one.users.get(image_id, []), one.emit)
        storage_pb2_grpc.add_StorageServiceServicer_to_server(servicer, server)
        server.add_insecure_port(address)
        await server.start()
        yield one
        await server.stop(None)


async def test_the_life_of_an_image(service: Service, state: State) -> None:
    (loaded,) = await service.load(docker_save(IMAGE))
    assert (loaded.image_id, list(loaded.tags)) == (IMAGE.id, ["box:1", "box:2"])
    service.users[IMAGE.id] = ["c" * 64]
    (image,) = (await service.stub.ListImages(pb.ListImagesRequest())).images
    assert (image.id, image.config_json, image.author, image.containers) == (IMAGE.id, IMAGE.config, "me", 1)
    assert image == (await service.stub.GetImage(pb.GetImageRequest(name="box:1"))).image
    await service.stub.TagImage(pb.TagImageRequest(source="box:1", target="new"))
    history = await service.stub.GetHistory(pb.GetHistoryRequest(name="new"))
    assert [(entry.id, entry.size_bytes, len(entry.tags)) for entry in history.entries] == [(IMAGE.id, 5, 3)]
    usage = await service.stub.GetDiskUsage(pb.GetDiskUsageRequest())
    assert usage.images_bytes > 0 < usage.free_bytes
    saved = b"".join([chunk.data async for chunk in service.stub.SaveImages(pb.SaveImagesRequest(names=["new"]))])
    removed = await service.stub.RemoveImage(pb.RemoveImageRequest(name="new"))
    assert (list(removed.untagged), list(removed.deleted)) == (["new:latest"], [])
    pruned = await service.stub.PruneImages(pb.PruneImagesRequest(all=True))
    assert list(pruned.deleted) == []
    service.users.clear()
    pruned = await service.stub.PruneImages(pb.PruneImagesRequest(all=True))
    assert (list(pruned.untagged), list(pruned.deleted)) == (["box:1", "box:2"], [IMAGE.id])
    assert pruned.reclaimed_bytes > 0
    assert (await service.load(saved))[0].tags == ["new:latest"]
    assert [(event[1], event[2] == IMAGE.id, event[3]["name"]) for event in service.events] == [
        ("load", True, "box:1"),
        ("load", True, "box:2"),
        ("tag", True, "new:latest"),
        ("untag", True, "new:latest"),
        ("untag", True, "box:1"),
        ("untag", True, "box:2"),
        ("delete", True, IMAGE.id),
        ("load", True, "new:latest"),
    ]
    assert {event[0] for event in service.events} == {"image"}


async def test_import(service: Service, store: ImageStore) -> None:
    async def requests(options: pb.ImportImageOptions) -> AsyncIterator[pb.ImportImageRequest]:
        yield pb.ImportImageRequest(options=options, data=LAYER[:100])
        yield pb.ImportImageRequest(data=LAYER[100:])

    response = await service.stub.ImportImage(requests(pb.ImportImageOptions(reference="mine", changes=["CMD x"])))
    assert store.get("mine:latest").id == response.image_id
    assert service.events == [("image", "import", response.image_id, {"name": "mine"})]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.ImportImage(requests(pb.ImportImageOptions(changes=["RUN x"])))
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "RUN is not a valid change command",
    )


async def test_import_without_options(service: Service) -> None:
    async def nothing() -> AsyncIterator[pb.ImportImageRequest]:
        return
        yield

    async def data_only() -> AsyncIterator[pb.ImportImageRequest]:
        yield pb.ImportImageRequest(data=b"x")

    for requests in (nothing(), data_only()):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.stub.ImportImage(requests)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_errors_have_their_status(service: Service) -> None:
    await service.load(docker_save(IMAGE))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.load(b"x" * 5000)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.GetImage(pb.GetImageRequest(name="foo"))
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.NOT_FOUND,
        "No such image: foo:latest",
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.RemoveImage(pb.RemoveImageRequest(name=IMAGE.id))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [chunk async for chunk in service.stub.SaveImages(pb.SaveImagesRequest(names=["foo"]))]
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_moved_name_is_told(service: Service) -> None:
    await service.load(docker_save(IMAGE))
    responses = await service.load(docker_save(Image([LAYER], ["box:1"])))
    assert [response.progress for response in responses] == [
        f"The image box:1 already exists, renaming the old one with ID {IMAGE.id} to empty string\n",
        "",
    ]


async def test_a_client_that_cancels_leaves_nothing(service: Service, state: State) -> None:
    sent = asyncio.Event()

    async def requests() -> AsyncIterator[pb.LoadImagesRequest]:
        yield pb.LoadImagesRequest(data=docker_save(IMAGE)[:5000])
        sent.set()
        await asyncio.Event().wait()

    call = service.stub.LoadImages(requests())
    await sent.wait()
    call.cancel()
    # The next call on this server is served after the cancelled one has been told, and the store still works.
    await service.load(docker_save(IMAGE))
    assert (await service.stub.GetImage(pb.GetImageRequest(name="box:1"))).image.id == IMAGE.id
