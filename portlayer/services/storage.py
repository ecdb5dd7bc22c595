"""StorageService: images. See proto/portlayer/v1/storage.proto."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

import grpc

from portlayer.errors import InvalidArgumentError
from portlayer.services.status import grpc_errors
from portlayer.storage import ImageStore, LoadedImage, Removal, StoredImage
from portlayer.v1 import storage_pb2 as pb
from portlayer.v1 import storage_pb2_grpc, types_pb2

Context = grpc.aio.ServicerContext[Any, Any]
# Ids of the containers made, or being made, from the image with this id.
ContainersUsing = Callable[[str], list[str]]
# type, action, actor's id, attributes
Emit = Callable[[str, str, str, Mapping[str, str]], None]


class StorageServicer(storage_pb2_grpc.StorageServiceServicer):
    """Puts the image store on the wire, and tells of what changes in it as events of type "image"."""

    def __init__(self, store: ImageStore, containers_using: ContainersUsing, emit: Emit) -> None:
        self._store = store
        self._containers_using = containers_using
        self._emit = emit

    async def LoadImages(
        self, request_iterator: AsyncIterator[pb.LoadImagesRequest], context: Context
    ) -> AsyncIterator[pb.LoadImagesResponse]:
        async with grpc_errors(context):
            async with contextlib.aclosing(_chunks(request_iterator)) as chunks:
                loaded = [image async for image in self._store.load(chunks)]
            # All of them are stored by now, even if the client does not stay for the list.
            for image in loaded:
                self._tell_loaded(image)
            for image in loaded:
                for note in image.notes:
                    yield pb.LoadImagesResponse(progress=note + "\n")
                yield pb.LoadImagesResponse(image_id=image.image_id, tags=image.tags)

    async def ImportImage(
        self, request_iterator: AsyncIterator[pb.ImportImageRequest], context: Context
    ) -> pb.ImportImageResponse:
        async with grpc_errors(context):
            first = await anext(aiter(request_iterator), None)
            if first is None or not first.HasField("options"):
                raise InvalidArgumentError("the first message must have options")
            async with contextlib.aclosing(_chunks(request_iterator, first.data)) as chunks:
                image_id = await self._store.import_rootfs(first.options, chunks)
            self._tell("import", image_id, first.options.reference or image_id)
            return pb.ImportImageResponse(image_id=image_id)

    async def SaveImages(self, request: pb.SaveImagesRequest, context: Context) -> AsyncIterator[pb.SaveImagesResponse]:
        async with grpc_errors(context), contextlib.aclosing(self._store.save(request.names)) as chunks:
            async for chunk in chunks:
                yield pb.SaveImagesResponse(data=chunk)

    async def ListImages(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        async with grpc_errors(context):
            return pb.ListImagesResponse(images=[self._message(image) for image in self._store.list()])

    async def GetImage(self, request: pb.GetImageRequest, context: Context) -> pb.GetImageResponse:
        async with grpc_errors(context):
            return pb.GetImageResponse(image=self._message(self._store.get(request.name)))

    async def TagImage(self, request: pb.TagImageRequest, context: Context) -> pb.TagImageResponse:
        async with grpc_errors(context):
            image, name = await self._store.tag(request.source, request.target)
            self._tell("tag", image.id, name)
            return pb.TagImageResponse()

    async def RemoveImage(self, request: pb.RemoveImageRequest, context: Context) -> pb.RemoveImageResponse:
        async with grpc_errors(context):
            removal = await self._store.remove(request.name, force=request.force, used_by=self._containers_using)
            self._tell_removed(removal)
            return pb.RemoveImageResponse(untagged=[name for name, _ in removal.untagged], deleted=removal.deleted)

    async def PruneImages(self, request: pb.PruneImagesRequest, context: Context) -> pb.PruneImagesResponse:
        async with grpc_errors(context):
            removal = await self._store.prune(
                all_unused=request.all,
                used_by=self._containers_using,
                created_before_unix_ns=request.created_before_unix_ns,
                labels=request.labels,
                labels_not=request.labels_not,
            )
            self._tell_removed(removal)
            return pb.PruneImagesResponse(
                untagged=[name for name, _ in removal.untagged],
                deleted=removal.deleted,
                reclaimed_bytes=removal.reclaimed_bytes,
            )

    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        async with grpc_errors(context):
            entries = [
                pb.HistoryEntry(
                    id=line.id,
                    created_unix_ns=line.created_unix_ns,
                    created_by=line.created_by,
                    size_bytes=line.size_bytes,
                    comment=line.comment,
                    tags=line.tags,
                )
                for line in self._store.history(request.name)
            ]
            return pb.GetHistoryResponse(entries=entries)

    async def GetDiskUsage(self, request: pb.GetDiskUsageRequest, context: Context) -> pb.GetDiskUsageResponse:
        async with grpc_errors(context):
            return pb.GetDiskUsageResponse(
                images_bytes=await self._store.images_bytes(), free_bytes=await self._store.free_bytes()
            )

    def _message(self, image: StoredImage) -> types_pb2.Image:
        config = image.config
        return types_pb2.Image(
            id=image.id,
            tags=image.tags,
            digests=image.digests,
            created_unix_ns=image.created_unix_ns,
            size_bytes=image.size_bytes,
            architecture=config.architecture,
            os=config.os,
            author=config.author,
            comment=config.comment,
            config_json=image.config_json,
            diff_ids=image.diff_ids,
            manifest_digest=image.manifest_digest,
            containers=len(self._containers_using(image.id)),
        )

    def _tell_loaded(self, image: LoadedImage) -> None:
        for name in image.tags or (image.image_id,):
            self._tell("load", image.image_id, name)

    def _tell_removed(self, removal: Removal) -> None:
        for name, image_id in removal.untagged:
            self._tell("untag", image_id, name)
        for image_id in removal.deleted:
            self._tell("delete", image_id, image_id)

    def _tell(self, action: str, image_id: str, name: str) -> None:
        self._emit("image", action, image_id, {"name": name})


async def _chunks(
    requests: AsyncIterator[pb.LoadImagesRequest] | AsyncIterator[pb.ImportImageRequest], first: bytes = b""
) -> AsyncGenerator[bytes, None]:
    if first:
        yield first
    async for request in requests:
        yield request.data
