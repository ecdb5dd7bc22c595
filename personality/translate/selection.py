"""Which containers a list shows: the filters of `docker ps`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from personality.api.filters import match_labels, truth
from personality.api.patterns import Pattern, expression
from personality.errors import DockerError
from personality.translate.describe import is_running, status_word
from personality.translate.networks import is_on
from personality.translate.policies import HEALTH_STATES, health_word
from portlayer.v1 import types_pb2

ACCEPTED = frozenset(
    {
        "ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name", "network",
        "publish", "since", "status", "volume",
    }
)  # fmt: skip
_STATUSES = frozenset({"created", "restarting", "running", "removing", "paused", "exited", "dead"})


def select(
    containers: Sequence[types_pb2.Container],
    filters: dict[str, list[str]],
    *,
    all_: bool,
    limit: int,
    ancestors: Mapping[str, str],
) -> list[types_pb2.Container]:
    """Those that match, newest first; `ancestors` are the ids of the images that the "ancestor" filter names.

    Raises DockerError 400 for a filter that makes no sense.
    """
    for status in filters.get("status", ()):
        if status not in _STATUSES:
            raise DockerError(400, f"invalid filter 'status={status}'")
    for health in filters.get("health", ()):
        if health not in HEALTH_STATES:
            raise DockerError(400, f"invalid filter 'health={health}'")
    is_task = truth(filters, "is-task")
    everything = all_ or limit > 0 or any(filters.get(name) for name in ("status", "exited"))
    before, since = (_reference(containers, filters.get(name)) for name in ("before", "since"))
    names = [expression(text, f"invalid filter 'name={text}'") for text in filters.get("name", ())]
    exits = [_exit_code(text) for text in filters.get("exited", ())]
    chosen = [
        one
        for one in containers
        if (everything or is_running(one))
        and is_task is not True
        and (before is None or one.state.created_unix_ns < before)
        and (since is None or one.state.created_unix_ns > since)
        and _any(filters.get("ancestor"), lambda value, one=one: _made_from(one, value, ancestors.get(value)))
        and _matches(one, filters, names, exits)
    ]
    chosen.sort(key=lambda one: one.state.created_unix_ns, reverse=True)
    return chosen[:limit] if limit > 0 else chosen


def _matches(one: types_pb2.Container, filters: dict[str, list[str]], names: list[Pattern], exits: list[int]) -> bool:
    return (
        _any(filters.get("id"), lambda value: one.id.startswith(value))
        and (not names or any(name.search(one.name) or name.search(f"/{one.name}") for name in names))
        and _any(filters.get("status"), lambda value: value == status_word(one))
        and (not exits or (status_word(one) == "exited" and one.state.exit_code in exits))
        and match_labels(filters.get("label", ()), one.spec.labels)
        and _any(filters.get("network"), lambda value: is_on(one, value))
        and _any(filters.get("health"), lambda value: value == health_word(one.state))
        # No container has volumes or ports yet.
        and not any(filters.get(name) for name in ("volume", "publish", "expose"))
    )


def _any(values: list[str] | None, holds: object) -> bool:
    return not values or any(holds(value) for value in values)  # type: ignore[operator]


def _made_from(one: types_pb2.Container, name: str, image: str | None) -> bool:
    """By the image that has the name now; of a name that none has, by what was said when it was created."""
    if image is not None:
        return one.image_id == image
    bare = name.removeprefix("sha256:")
    image_id = one.image_id.removeprefix("sha256:")
    same = {one.spec.image, f"{one.spec.image}:latest", one.spec.image.removesuffix(":latest")}
    return name in same or (len(bare) >= 12 and image_id.startswith(bare))


def _exit_code(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DockerError(400, f"invalid filter 'exited={text}'") from None


def _reference(containers: Sequence[types_pb2.Container], names: list[str] | None) -> int | None:
    """When the container that "before" or "since" names was created."""
    if not names:
        return None
    name = names[0].removeprefix("/")
    for one in containers:
        if one.name == name or one.id.startswith(name):
            return one.state.created_unix_ns
    raise DockerError(404, f"No such container: {names[0]}")
