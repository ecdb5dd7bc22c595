"""When endpoints are up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.dockerd import Dockerd
from bench.endpoints import Endpoint, EndpointError
from bench.lineup import Lineup


class _Endpoints:
    """What happened to endpoints, in order."""

    def __init__(self) -> None:
        self.story: list[str] = []

    @contextmanager
    def open(self, name: str, fails: str = "") -> Iterator[Endpoint]:
        if fails == "up":
            raise EndpointError("no")
        self.story.append(f"+{name}")
        yield Dockerd(name, f"the {name}", "unix:///nowhere", Path())
        self.story.append(f"-{name}")
        if fails == "down":
            raise EndpointError("stuck")

    def lineup(self, **fails: str) -> Lineup:
        openers = {name: partial(self.open, name, fails.get(name, "")) for name in ("a", "b", "c")}
        return Lineup(openers, lambda _: None)


def test_each_is_up_from_first_to_last_need() -> None:
    endpoints = _Endpoints()
    with endpoints.lineup() as lineup:
        assert [one.name for one in lineup.get(["b", "a", "unknown"])] == ["b", "a"]
        lineup.keep(["a"])
        assert [one.name for one in lineup.get(["a", "c"])] == ["a", "c"]
        assert endpoints.story == ["+b", "+a", "-b", "+c"]
    assert sorted(endpoints.story[4:]) == ["-a", "-c"]
    assert lineup.described == {"b": "the b", "a": "the a", "c": "the c"}


def test_one_that_cannot_be_had_is_tried_once_and_leaves_the_others() -> None:
    endpoints = _Endpoints()
    with endpoints.lineup(a="up") as lineup:
        for _ in range(2):
            assert [one.name for one in lineup.get(["a", "b"])] == ["b"]
    assert lineup.described["a"] == "not measured: no"


def test_one_that_does_not_take_the_image_is_ended() -> None:
    endpoints = _Endpoints()

    def refuse(_: Endpoint) -> None:
        raise EndpointError("no image")

    @contextmanager
    def opener() -> Iterator[Endpoint]:
        try:
            yield Dockerd("a", "", "unix:///nowhere", Path())
        finally:
            endpoints.story.append("-a")

    with Lineup({"a": opener}, refuse) as lineup:
        assert lineup.get(["a"]) == []
        assert endpoints.story == ["-a"]


def test_an_end_that_fails_is_told_and_the_others_end() -> None:
    endpoints = _Endpoints()
    with endpoints.lineup(a="down") as lineup:
        lineup.get(["a", "b"])
    assert lineup.left == ["a did not end: stuck"]
    assert sorted(endpoints.story[2:]) == ["-a", "-b"]
