"""GET /events: what happens in the VCH, one JSON object per line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import msgspec

from personality.api.filters import match_exactly, match_labels, match_prefix
from personality.backend import Backend
from personality.errors import DockerError
from personality.http.messages import Request, Stream
from personality.http.router import Route
from personality.times import parse_time
from portlayer.v1 import events_pb2

_FILTERS = frozenset(
    {
        *("config", "container", "daemon", "event", "action", "image", "label", "network", "node", "plugin", "scope"),
        *("secret", "service", "type", "volume"),
    }
)

# Filters on objects of other types than the VCH has: no event passes them.
_FOREIGN = ("config", "daemon", "network", "node", "plugin", "secret", "service", "volume")

# Their actions carry more behind a colon.
_OPEN_ENDED = frozenset({"exec_create", "exec_start", "health_status"})

_SECOND_NS = 1_000_000_000

Filters = Mapping[str, list[str]]


async def stream_events(request: Request, backend: Backend) -> Stream:
    filters = request.query.filters(_FILTERS)
    since, until = request.query.get("since"), request.query.get("until")
    # The port layer takes 0 for "no limit"; clients name 0 for the beginning.
    since_ns = max(1, parse_time(since, "since")) if since else 0
    until_ns = max(1, parse_time(until, "until")) if until else 0
    if since and until and since_ns > until_ns:
        raise DockerError(400, f"`since` time ({since}) cannot be after `until` time ({until})")
    wanted = events_pb2.StreamEventsRequest(since_unix_ns=since_ns, until_unix_ns=until_ns)
    return Stream(_lines(backend, wanted, filters))


async def _lines(backend: Backend, wanted: events_pb2.StreamEventsRequest, filters: Filters) -> AsyncIterator[bytes]:
    call = backend.events.StreamEvents(wanted)
    try:
        async for response in call:
            if not response.HasField("event"):
                yield b""  # armed: clients may rely on it once they have the headers
            elif match_event(filters, response.event):
                yield msgspec.json.encode(event_message(response.event)) + b"\n"
    finally:
        call.cancel()


def event_message(event: events_pb2.Event) -> dict[str, object]:
    """EventMessage of the API, with the fields of older clients (status, id, from) where they had them."""
    message: dict[str, object] = {}
    if event.type in {"container", "image"}:
        message |= {"status": event.action, "id": event.actor_id}
    if event.type == "container" and "image" in event.attributes:
        message["from"] = event.attributes["image"]
    return message | {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.actor_id, "Attributes": dict(event.attributes)},
        "scope": "local",
        "time": event.time_unix_ns // _SECOND_NS,
        "timeNano": event.time_unix_ns,
    }


def match_event(filters: Filters, event: events_pb2.Event) -> bool:
    """Whether an event passes all filters; of one filter's values, one is enough, but for labels."""
    return (
        match_exactly(filters.get("type"), event.type)
        and match_exactly(filters.get("scope"), "local")
        and _match_action(filters.get("event", []) + filters.get("action", []), event.action)
        and match_labels(filters.get("label", ()), event.attributes)
        and match_prefix(filters.get("container"), event.actor_id, event.attributes.get("name", ""))
        and _match_image(filters.get("image"), event)
        and not any(filters.get(name) for name in _FOREIGN)
    )


def _match_action(wanted: list[str], action: str) -> bool:
    name = action.partition(":")[0]
    return match_exactly(wanted, action, *([name] if name in _OPEN_ENDED else []))


def _match_image(wanted: list[str] | None, event: events_pb2.Event) -> bool:
    name = event.attributes.get("name" if event.type == "image" else "image", "")
    return match_exactly(wanted, event.actor_id, name, _without_tag(name))


def _without_tag(name: str) -> str:
    head, separator, tail = name.rpartition(":")
    return head if separator and "/" not in tail else name


ROUTES = [Route("GET", "/events", stream_events)]
