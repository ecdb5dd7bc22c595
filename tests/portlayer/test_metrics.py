"""What is counted, and that it can be read as Prometheus reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from portlayer.errors import LaunchError
from portlayer.metrics import Metrics
from portlayer.v1 import system_pb2, types_pb2

if TYPE_CHECKING:
    from conftest import Host


def samples(text: str) -> dict[tuple[str, ...], float]:
    """By name and the values of the labels."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_starts_by_method_and_phase() -> None:
    metrics = Metrics()
    metrics.started("pooled", {"machine": 1_000_000, "exec": 8_000_000})
    metrics.started("pooled", {"machine": 1_000_000, "exec": 108_000_000})
    metrics.started("cold-boot", {"agent": 4_000_000_000})
    metrics.start_failed()
    found = samples(metrics.render([], []))
    assert found["vch_container_starts_total", "pooled"] == 2
    assert found["vch_container_starts_total", "cold-boot"] == 1
    assert found["vch_container_start_failures_total",] == 1
    assert found["vch_container_start_seconds_sum", "pooled"] == pytest.approx(0.118)
    assert found["vch_container_start_seconds_bucket", "0.01", "pooled"] == 1
    assert found["vch_container_start_seconds_bucket", "5.0", "cold-boot"] == 1
    assert found["vch_container_start_phase_seconds_sum", "pooled", "exec"] == pytest.approx(0.116)
    assert found["vch_container_start_phase_seconds_bucket", "0.005", "pooled", "machine"] == 2


def test_calls_to_vsphere_by_method() -> None:
    metrics = Metrics()
    metrics.vsphere_called("CreateVM_Task", 0.25)
    metrics.vsphere_called("CreateVM_Task", 0.5)
    metrics.vsphere_called("Login", 1.0)
    found = samples(metrics.render([], []))
    assert found["vch_vsphere_call_seconds_count", "CreateVM_Task"] == 2
    assert found["vch_vsphere_call_seconds_sum", "CreateVM_Task"] == pytest.approx(0.75)
    assert found["vch_vsphere_call_seconds_count", "Login"] == 1


def test_what_there_is_follows_each_reading() -> None:
    metrics = Metrics()
    template = system_pb2.Template(
        state=system_pb2.Template.STATE_READY, disk_bytes=270, resident_bytes=120, pooled=3, clones=1
    )
    making = system_pb2.Template(state=system_pb2.Template.STATE_MAKING, disk_bytes=30)
    running = types_pb2.CONTAINER_STATUS_RUNNING
    found = samples(metrics.render([running, running, types_pb2.CONTAINER_STATUS_EXITED], [template, making]))
    assert [found["vch_containers", state] for state in ("running", "exited", "paused")] == [2, 1, 0]
    assert [found["vch_templates", state] for state in ("ready", "making", "failed")] == [1, 1, 0]
    names = ("vch_pooled_clones", "vch_template_disk_bytes", "vch_template_resident_bytes")
    assert [found[name,] for name in names] == [3, 300, 120]
    found = samples(metrics.render([], []))
    assert [found["vch_containers", "running"], found["vch_templates", "ready"]] == [0, 0]
    assert found["vch_pooled_clones",] == 0


async def test_containers_are_counted_as_they_start(host: Host) -> None:
    container = await host.create("echo")
    await container.start()
    fails = await host.create("nosuch")
    with pytest.raises(LaunchError):
        await fails.start()
    found = samples(host.metrics.render([], []))
    assert found["vch_container_starts_total", "cold-boot"] == 1
    assert found["vch_container_start_seconds_count", "cold-boot"] == 1
    assert found["vch_container_start_failures_total",] == 1
    assert ("vch_container_starts_total", "clone") not in found
