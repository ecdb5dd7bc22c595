"""Images: list, inspect, history, tag, remove, prune. Their bytes in and out are image_archives.py's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from personality.api.filters import match_labels, truth
from personality.api.patterns import glob
from personality.api.platforms import parse_platform, provides
from personality.backend import Backend
from personality.errors import DockerError
from personality.http.messages import Reply, Request
from personality.http.router import Route
from personality.times import NEVER, parse_time, rfc3339
from portlayer.v1 import storage_pb2, types_pb2

_LIST_FILTERS = frozenset({"before", "dangling", "label", "reference", "since", "until"})
_PRUNE_FILTERS = frozenset({"dangling", "label", "label!", "until"})

# Of an OCI configuration, what ImageConfig of the API documents, but for User and WorkingDir, which are always there.
_CONFIG_FIELDS = (
    *("ExposedPorts", "Env", "Cmd", "Healthcheck", "ArgsEscaped", "Volumes", "Entrypoint", "OnBuild", "Labels"),
    *("StopSignal", "Shell"),
)

_SECOND_NS = 1_000_000_000

Version = tuple[int, int]


async def list_images(request: Request, backend: Backend) -> Reply:
    filters = request.query.filters(_LIST_FILTERS)
    response = await backend.storage.ListImages(storage_pb2.ListImagesRequest())
    images = sorted(response.images, key=lambda image: image.created_unix_ns, reverse=True)
    images = await _narrow(images, filters, backend)
    summaries = [image_summary(image, request.api_version) for image in images]
    if patterns := filters.get("reference"):
        summaries = [summary for summary in summaries if _keep_references(summary, patterns)]
    return Reply(body=summaries)


async def _narrow(
    images: list[types_pb2.Image], filters: dict[str, list[str]], backend: Backend
) -> list[types_pb2.Image]:
    for name in filters.get("before", ()):
        limit = await _created(backend, name)
        images = [image for image in images if image.created_unix_ns < limit]
    for name in filters.get("since", ()):
        limit = await _created(backend, name)
        images = [image for image in images if image.created_unix_ns > limit]
    for text in filters.get("until", ()):
        limit = parse_time(text, "until")
        images = [image for image in images if image.created_unix_ns < limit]
    dangling = truth(filters, "dangling")
    if dangling is not None:
        images = [image for image in images if dangling is not bool(image.tags)]
    if labels := filters.get("label"):
        images = [image for image in images if match_labels(labels, image_labels(image))]
    return images


async def _created(backend: Backend, name: str) -> int:
    response = await backend.storage.GetImage(storage_pb2.GetImageRequest(name=name))
    return response.image.created_unix_ns


def _keep_references(summary: dict[str, Any], patterns: Iterable[str]) -> bool:
    """Leaves the names that one of the patterns matches, with or without tag; False when none is left."""
    globs = [glob(pattern) for pattern in patterns]

    def matches(name: str, separator: str) -> bool:
        return any(each.fullmatch(name) or each.fullmatch(name.rpartition(separator)[0]) for each in globs)

    summary["RepoTags"] = [name for name in summary["RepoTags"] if matches(name, ":")]
    summary["RepoDigests"] = [name for name in summary["RepoDigests"] if matches(name, "@")]
    return bool(summary["RepoTags"] or summary["RepoDigests"])


def image_summary(image: types_pb2.Image, version: Version) -> dict[str, Any]:
    """ImageSummary of the API."""
    summary: dict[str, Any] = {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": list(image.tags),
        "RepoDigests": list(image.digests),
        "Created": image.created_unix_ns // _SECOND_NS,
        "Size": image.size_bytes,
        "SharedSize": -1,  # each image has a disk of its own
        "Labels": image_labels(image),
        "Containers": image.containers,
    }
    if version < (1, 44):
        summary["VirtualSize"] = image.size_bytes
    if version < (1, 43) and not image.tags and not image.digests:
        summary |= {"RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"]}
    return summary


def image_labels(image: types_pb2.Image) -> dict[str, str]:
    """The labels in an image's configuration."""
    labels = _config(image)[1].get("Labels") or {}
    return {str(key): str(value) for key, value in labels.items()}


def _config(image: types_pb2.Image) -> tuple[dict[str, Any], dict[str, Any]]:
    """An image's OCI configuration, and what it says about running."""
    try:
        document = msgspec.json.decode(image.config_json or b"{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise DockerError(500, f"the configuration of image {image.id} is broken: {error}") from error
    running = document.get("config")
    return document, running if isinstance(running, dict) else {}


async def image_for_platform(backend: Backend, name: str, platform: str) -> types_pb2.Image:
    """The image, if it is for the platform that a client asks for. Raises DockerError 404, or AioRpcError."""
    image = (await backend.storage.GetImage(storage_pb2.GetImageRequest(name=name))).image
    wanted = parse_platform(platform)
    if wanted is not None and not provides(image, str(_config(image)[0].get("variant") or ""), wanted):
        own = f"{image.os}/{image.architecture}"
        raise DockerError(
            404,
            f"image with reference {name} was found but its platform ({own}) does not match the specified platform "
            f"({wanted})",
        )
    return image


async def inspect_image(request: Request, backend: Backend) -> Reply:
    image = await image_for_platform(backend, request.params["name"], request.query.get("platform"))
    return Reply(body=image_inspect(image, request.api_version))


def image_inspect(image: types_pb2.Image, version: Version) -> dict[str, Any]:
    """ImageInspect of the API."""
    document, running = _config(image)
    config = {name: running[name] for name in _CONFIG_FIELDS if running.get(name)}
    inspect: dict[str, Any] = {
        "Id": image.id,
        "RepoTags": list(image.tags),
        "RepoDigests": list(image.digests),
        "Parent": "",
        "Comment": image.comment,
        "DockerVersion": str(document.get("docker_version") or ""),
        "Author": image.author,
        "Config": {"User": running.get("User") or "", "WorkingDir": running.get("WorkingDir") or "", **config},
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size_bytes,
        "GraphDriver": {"Name": "squashfs", "Data": {}},
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)},
        "Metadata": {"LastTagTime": NEVER},
    }
    if image.created_unix_ns or version < (1, 44):
        inspect["Created"] = rfc3339(image.created_unix_ns)
    if version < (1, 44):
        inspect["VirtualSize"] = image.size_bytes
    for name, source in (("Variant", "variant"), ("OsVersion", "os.version")):
        if document.get(source):
            inspect[name] = str(document[source])
    return inspect


async def image_history(request: Request, backend: Backend) -> Reply:
    if platform := request.query.get("platform"):
        await image_for_platform(backend, request.params["name"], platform)
    response = await backend.storage.GetHistory(storage_pb2.GetHistoryRequest(name=request.params["name"]))
    return Reply(
        body=[
            {
                "Id": entry.id,
                "Created": entry.created_unix_ns // _SECOND_NS,
                "CreatedBy": entry.created_by,
                "Tags": list(entry.tags),
                "Size": entry.size_bytes,
                "Comment": entry.comment,
            }
            for entry in response.entries
        ]
    )


async def tag_image(request: Request, backend: Backend) -> Reply:
    target = join_reference(request.query.get("repo"), request.query.get("tag"))
    if not target:
        raise DockerError(400, "invalid reference format: the new name is missing")
    await backend.storage.TagImage(storage_pb2.TagImageRequest(source=request.params["name"], target=target))
    return Reply(status=201)


def join_reference(repository: str, tag: str) -> str:
    """The "name:tag" of both; a tag given by itself wins over one within the name. The port layer checks the form."""
    if not repository or not tag:
        return repository
    head, separator, tail = repository.rpartition(":")
    name = head if separator and "/" not in tail else repository
    return f"{name}@{tag}" if ":" in tag else f"{name}:{tag}"


async def remove_image(request: Request, backend: Backend) -> Reply:
    response = await backend.storage.RemoveImage(
        storage_pb2.RemoveImageRequest(name=request.params["name"], force=request.query.flag("force"))
    )
    return Reply(body=_removed(response.untagged, response.deleted))


def _removed(untagged: Iterable[str], deleted: Iterable[str]) -> list[dict[str, str]]:
    return [{"Untagged": name} for name in untagged] + [{"Deleted": name} for name in deleted]


async def prune_images(request: Request, backend: Backend) -> Reply:
    filters = request.query.filters(_PRUNE_FILTERS)
    until = [max(1, parse_time(text, "until")) for text in filters.get("until", ())]
    response = await backend.storage.PruneImages(
        storage_pb2.PruneImagesRequest(
            all=truth(filters, "dangling") is False,
            created_before_unix_ns=min(until, default=0),
            labels=filters.get("label", ()),
            labels_not=filters.get("label!", ()),
        )
    )
    return Reply(
        body={
            "ImagesDeleted": _removed(response.untagged, response.deleted),
            "SpaceReclaimed": response.reclaimed_bytes,
        }
    )


ROUTES = [
    Route("GET", "/images/json", list_images),
    Route("POST", "/images/prune", prune_images),
    Route("GET", "/images/{name:.+}/json", inspect_image),
    Route("GET", "/images/{name:.+}/history", image_history),
    Route("POST", "/images/{name:.+}/tag", tag_image),
    Route("DELETE", "/images/{name:.+}", remove_image),
]
