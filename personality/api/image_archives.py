"""Images' bytes in and out: docker load, import and save. Nothing of them is held here; it all flows through."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc.aio
import msgspec

from personality.api.images import image_for_platform, join_reference
from personality.api.platforms import parse_platform
from personality.api.uploads import feeding, pieces
from personality.backend import Backend
from personality.errors import DockerError, NotServed, from_rpc
from personality.http.messages import Reply, Request, Response, Stream
from personality.http.router import Route
from portlayer.v1 import storage_pb2, system_pb2

_TAR = "application/x-tar"


async def load_images(request: Request, backend: Backend) -> Stream:
    wanted = parse_platform(request.query.get("platform"))
    if wanted is not None:
        info = await backend.system.GetInfo(system_pb2.GetInfoRequest())
        if wanted != parse_platform(f"linux/{info.architecture}"):
            raise NotServed(f"choosing {wanted} from an archive is not served: docker load it without --platform")
    return Stream(_load(request, backend, quiet=request.query.flag("quiet")))


async def _load(request: Request, backend: Backend, *, quiet: bool) -> AsyncIterator[bytes]:
    """Progress and results. An error after the first line becomes a line itself, which clients look for."""
    begun = False
    try:
        call = backend.storage.LoadImages()  # type: ignore[call-arg]  # grpc-stubs know only ready iterators
        async with feeding(call, _load_requests(request)):
            async for response in call:
                for line in _load_lines(response, quiet=quiet):
                    begun = True
                    yield _encode(line)
    except (grpc.aio.AioRpcError, DockerError) as error:
        if not begun:
            raise
        message = (from_rpc(error) if isinstance(error, grpc.aio.AioRpcError) else error).message
        yield _encode({"errorDetail": {"message": message}, "error": message})


async def _load_requests(request: Request) -> AsyncIterator[storage_pb2.LoadImagesRequest]:
    async for piece in pieces(request.chunks()):
        yield storage_pb2.LoadImagesRequest(data=piece)


def _load_lines(response: storage_pb2.LoadImagesResponse, *, quiet: bool) -> list[dict[str, object]]:
    if response.image_id:
        names = [f"Loaded image: {tag}\n" for tag in response.tags]
        return [{"stream": text} for text in names or [f"Loaded image ID: {response.image_id}\n"]]
    return [{"status": response.progress}] if response.progress and not quiet else []


async def create_image(request: Request, backend: Backend) -> Response:
    """docker import. Pulling, the other half of this endpoint, is not served."""
    source = request.query.get("fromSrc")
    if not source:
        raise NotServed("pulling images is not served yet: docker load an archive instead")
    if source != "-":
        raise NotServed("importing from a URL is not served: download the archive and docker import it")
    options = storage_pb2.ImportImageOptions(
        reference=join_reference(request.query.get("repo"), request.query.get("tag")),
        comment=request.query.get("message") or "Imported from -",
        changes=request.query.all("changes"),
        platform=request.query.get("platform"),
    )
    call = backend.storage.ImportImage()  # type: ignore[call-arg]  # grpc-stubs know only ready iterators
    async with feeding(call, _import_requests(request, options)):
        response = await call
    return Reply(raw=_encode({"status": response.image_id}))


async def _import_requests(
    request: Request, options: storage_pb2.ImportImageOptions
) -> AsyncIterator[storage_pb2.ImportImageRequest]:
    yield storage_pb2.ImportImageRequest(options=options)
    async for piece in pieces(request.chunks()):
        yield storage_pb2.ImportImageRequest(data=piece)


async def save_image(request: Request, backend: Backend) -> Stream:
    return await _saved(request, backend, [request.params["name"]])


async def save_images(request: Request, backend: Backend) -> Stream:
    names = request.query.all("names")
    if not names:
        raise DockerError(400, "no image is named: give names=...")
    return await _saved(request, backend, names)


async def _saved(request: Request, backend: Backend, names: list[str]) -> Stream:
    if platform := request.query.get("platform"):
        for name in names:
            await image_for_platform(backend, name, platform)
    return Stream(_save(backend, names), content_type=_TAR)


async def _save(backend: Backend, names: list[str]) -> AsyncIterator[bytes]:
    call = backend.storage.SaveImages(storage_pb2.SaveImagesRequest(names=names))
    try:
        async for response in call:
            yield response.data
    finally:
        call.cancel()


def _encode(line: dict[str, object]) -> bytes:
    return msgspec.json.encode(line) + b"\n"


ROUTES = [
    Route("POST", "/images/load", load_images),
    Route("POST", "/images/create", create_image),
    Route("GET", "/images/get", save_images),
    Route("GET", "/images/{name:.+}/get", save_image),
]
