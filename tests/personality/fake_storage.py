"""The fake port layer's images."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from fake_state import FakeState

from portlayer.v1 import storage_pb2, storage_pb2_grpc, types_pb2


class Storage(storage_pb2_grpc.StorageServiceServicer):
    def __init__(self, fake: FakeState) -> None:
        self._fake = fake

    async def LoadImages(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        await self._fake.enter("LoadImages", None, context)
        yield storage_pb2.LoadImagesResponse(progress="reading the archive")
        data = bytearray()
        async for request in requests:
            assert len(request.data) <= 1 << 20
            data += request.data
        await self._fake.hold("LoadImages, read")
        self._fake.uploads["LoadImages"] = bytes(data)
        if data.startswith(b"broken"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the archive is broken")
        image_id = self._fake.add_image("loaded:latest")
        yield storage_pb2.LoadImagesResponse(image_id=image_id, tags=["loaded:latest"])
        yield storage_pb2.LoadImagesResponse(image_id=self._fake.add_image())

    async def ImportImage(self, requests: AsyncIterator[Any], context: Any) -> Any:
        first = await anext(requests)
        await self._fake.enter("ImportImage", first.options, context)
        data = bytearray()
        async for request in requests:
            data += request.data
        self._fake.uploads["ImportImage"] = bytes(data)
        if data.startswith(b"broken"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the archive is broken")
        return storage_pb2.ImportImageResponse(image_id=self._fake.add_image(first.options.reference))

    async def SaveImages(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._fake.enter("SaveImages", request, context)
        for name in request.names:
            await self._image(name, context)
        for start in range(0, len(self._fake.archive), 1 << 18):
            yield storage_pb2.SaveImagesResponse(data=self._fake.archive[start : start + (1 << 18)])

    async def _image(self, name: str, context: Any) -> types_pb2.Image:
        image = self._fake.image(name)
        if image is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"No such image: {name}")
        assert image is not None
        return image

    async def ListImages(self, request: Any, context: Any) -> Any:
        await self._fake.enter("ListImages", request, context)
        return storage_pb2.ListImagesResponse(images=list(self._fake.images.values()))

    async def GetImage(self, request: Any, context: Any) -> Any:
        await self._fake.enter("GetImage", request, context)
        return storage_pb2.GetImageResponse(image=await self._image(request.name, context))

    async def TagImage(self, request: Any, context: Any) -> Any:
        await self._fake.enter("TagImage", request, context)
        image = await self._image(request.source, context)
        image.tags.append(request.target)
        return storage_pb2.TagImageResponse()

    async def RemoveImage(self, request: Any, context: Any) -> Any:
        await self._fake.enter("RemoveImage", request, context)
        image = await self._image(request.name, context)
        del self._fake.images[image.id]
        return storage_pb2.RemoveImageResponse(untagged=image.tags, deleted=[image.id])

    async def PruneImages(self, request: Any, context: Any) -> Any:
        await self._fake.enter("PruneImages", request, context)
        deleted = [image.id for image in self._fake.images.values() if request.all or not image.tags]
        for image_id in deleted:
            del self._fake.images[image_id]
        return storage_pb2.PruneImagesResponse(deleted=deleted, reclaimed_bytes=100 * len(deleted))

    async def GetHistory(self, request: Any, context: Any) -> Any:
        await self._fake.enter("GetHistory", request, context)
        image = await self._image(request.name, context)
        entry = storage_pb2.HistoryEntry(
            id=image.id, created_unix_ns=image.created_unix_ns, created_by="CMD sh", size_bytes=5, tags=image.tags
        )
        older = storage_pb2.HistoryEntry(id="<missing>", created_by="ADD file:x in /")
        return storage_pb2.GetHistoryResponse(entries=[entry, older])

    async def GetDiskUsage(self, request: Any, context: Any) -> Any:
        await self._fake.enter("GetDiskUsage", request, context)
        return storage_pb2.GetDiskUsageResponse(images_bytes=7_000, containers_bytes=900, free_bytes=1 << 30)
