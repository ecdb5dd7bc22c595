"""Health checks: what probes find, when they run, and what they may not disturb."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from fake_agent import PROGRAMS, FakeProcess
from patience import PATIENCE_S, until

from portlayer.errors import InvalidArgumentError
from portlayer.execution import Container, health, states
from portlayer.execution import container as container_module
from portlayer.execution.probe import probe
from portlayer.storage.image_config import HealthCheck, parse_image_config
from portlayer.v1 import types_pb2

if TYPE_CHECKING:
    from conftest import Host

MS = 1_000_000
Health = types_pb2.Health


def check(*test: str, **changes: int) -> types_pb2.HealthCheck:
    return types_pb2.HealthCheck(test=test, **{"interval_ns": 5 * MS, "timeout_ns": int(PATIENCE_S * 1e9), **changes})  # type: ignore[arg-type]


async def becomes(container: Container, status: Health.Status) -> None:
    await until(lambda: container.state.health.status == status)


class Verdict:
    """The program "verdict": ends with `code`, which it writes too, once it `may_end`."""

    def __init__(self) -> None:
        self.code = 0
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def run(self, process: FakeProcess) -> int:
        await self.may_end.wait()
        await process.write(b"code %d\n" % self.code)
        return self.code


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> Verdict:
    verdict = Verdict()
    monkeypatch.setitem(PROGRAMS, "verdict", verdict.run)
    return verdict


async def test_a_container_becomes_unwell_and_well_again(host: Host, verdict: Verdict) -> None:
    verdict.code = 7
    verdict.may_end.clear()
    container = await host.create("stubborn", health_check=check("CMD", "verdict", retries=2))
    assert not container.state.HasField("health")
    await container.start()
    assert container.state.health.status == Health.STATUS_STARTING
    verdict.may_end.set()
    await becomes(container, Health.STATUS_UNHEALTHY)
    assert container.state.health.failing_streak >= 2
    assert container.state.health.probes[-1].exit_code == 7
    assert container.state.health.probes[-1].output == b"code 7\n"
    verdict.code = 0
    await becomes(container, Health.STATUS_HEALTHY)
    assert container.state.health.failing_streak == 0
    assert len(container.state.health.probes) <= 5
    words = [event.action for event in host.events._history(0, 0) if event.action.startswith("health")]
    assert words == ["health_status: unhealthy", "health_status: healthy"]
    await container.stop(0, 0)
    assert container.state.health.status == Health.STATUS_HEALTHY
    verdict.may_end.clear()
    await container.start()  # what was found before is forgotten
    assert container.state.health.status == Health.STATUS_STARTING
    assert not container.state.health.probes
    await container.remove(force=True)


async def test_probes_leave_no_execs_behind(host: Host, verdict: Verdict) -> None:
    container = await host.create("stubborn", health_check=check("CMD", "verdict"))
    await container.start()
    await becomes(container, Health.STATUS_HEALTHY)
    await container.remove(force=True)
    assert not container.execs


async def test_a_probe_that_takes_too_long_is_killed(host: Host) -> None:
    container = await host.create("stubborn", health_check=check("CMD", "stubborn", timeout_ns=20 * MS, retries=1))
    await container.start()
    await becomes(container, Health.STATUS_UNHEALTHY)
    assert container.state.health.probes[0].exit_code == -1
    assert container.state.health.probes[0].output == b"Health check exceeded timeout (0.02s)"
    await container.remove(force=True)


async def test_a_probe_that_cannot_be_run_counts_as_a_failure(host: Host) -> None:
    container = await host.create("stubborn", health_check=check("CMD-SHELL", "exit 0", retries=1))  # there is no shell
    await container.start()
    await becomes(container, Health.STATUS_UNHEALTHY)
    assert b"executable file not found" in container.state.health.probes[0].output
    await container.remove(force=True)


async def test_much_output_is_cut(host: Host) -> None:
    container = await host.create("stubborn", health_check=check("CMD", "flood", "40"))
    await container.start()
    await becomes(container, Health.STATUS_HEALTHY)
    assert container.state.health.probes[0].output == b"x" * 4096 + b"..."
    await container.remove(force=True)


async def test_failures_of_the_start_period_do_not_count(host: Host, verdict: Verdict) -> None:
    verdict.code = 1
    settings = check("CMD", "verdict", retries=1, start_period_ns=3_600_000 * MS, start_interval_ns=5 * MS)
    container = await host.create("stubborn", health_check=settings)
    await container.start()
    await until(lambda: len(container.state.health.probes) >= 3)
    assert container.state.health.status == Health.STATUS_STARTING
    assert container.state.health.failing_streak == 0
    await container.remove(force=True)


async def test_a_frozen_container_is_not_asked(host: Host, verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[types_pb2.HealthProbe | None] = []

    async def noted(*asked: Any) -> types_pb2.HealthProbe | None:
        found.append(await probe(*asked))
        return found[-1]

    monkeypatch.setattr(container_module, "probe", noted)
    container = await host.create("stubborn", health_check=check("CMD", "verdict"))
    await container.start()
    await becomes(container, Health.STATUS_HEALTHY)
    await container.pause()
    verdict.code = 1
    before = len(found)
    await until(lambda: len(found) >= before + 3)
    assert found[before:] == [None] * (len(found) - before)
    assert container.state.status == states.PAUSED
    assert container.state.health.status == Health.STATUS_HEALTHY
    await container.remove(force=True)


async def test_probing_goes_on_with_another_port_layer(host: Host, verdict: Verdict) -> None:
    container = await host.create("stubborn", name="box1", health_check=check("CMD", "verdict"))
    await container.start()
    await becomes(container, Health.STATUS_HEALTHY)
    await host.restart()
    await becomes(host.manager.get("box1"), Health.STATUS_HEALTHY)
    await host.manager.get("box1").remove(force=True)


def test_what_is_open_comes_from_the_image() -> None:
    image = HealthCheck(("CMD-SHELL", "true"), interval_ns=5 * MS, retries=7)
    own = types_pb2.HealthCheck(interval_ns=9 * MS)
    health.complete(own, image)
    assert health.command(own) == ["/bin/sh", "-c", "true"]
    assert (own.interval_ns, own.timeout_ns, own.retries) == (9 * MS, 0, 7)
    none = types_pb2.HealthCheck(test=["NONE"])
    health.complete(none, image)
    assert health.command(none) == []
    strange = types_pb2.HealthCheck()
    health.complete(strange, replace(image, test=("MAGIC",)))  # an image's fault does not keep it from running
    assert health.command(strange) == []
    for wrong in (types_pb2.HealthCheck(test=["MAGIC"]), types_pb2.HealthCheck(test=["CMD", "x"], timeout_ns=5)):
        with pytest.raises(InvalidArgumentError):
            health.complete(wrong, image)


def test_images_say_how_they_are() -> None:
    config = parse_image_config(
        b'{"config":{"Healthcheck":{"Test":["CMD","x"],"Interval":1000000000,"Retries":99999999999999}}}', "config"
    )
    assert config.health_check == HealthCheck(("CMD", "x"), interval_ns=1_000_000_000, retries=2**31 - 1)
    assert parse_image_config(b"{}", "config").health_check == HealthCheck()
