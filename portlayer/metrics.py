"""What a port layer counts and measures, in the text format that Prometheus reads.

Starts are counted as they happen; how many there are of what is asked for when somebody reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import prometheus_client as prometheus

from portlayer.v1 import system_pb2, types_pb2

# Seconds: from a clone that waited to a boot under software emulation.
_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 20, 30, 60)
_CONTAINER_STATES = tuple(
    name.removeprefix("CONTAINER_STATUS_").lower() for name in types_pb2.ContainerStatus.keys()[1:]
)
_TEMPLATE_STATES = tuple(name.removeprefix("STATE_").lower() for name in system_pb2.Template.State.keys()[1:])


class Metrics:
    """The metrics of one port layer; each instance counts for itself."""

    def __init__(self) -> None:
        registry = self._registry = prometheus.CollectorRegistry()
        self._starts = prometheus.Counter(
            "vch_container_starts", "Starts of containers by how their VM came to run.", ["method"], registry=registry
        )
        self._failures = prometheus.Counter(
            "vch_container_start_failures", "Starts of containers that failed.", registry=registry
        )
        self._seconds = prometheus.Histogram(
            "vch_container_start_seconds",
            "How long starts took, from power-on to the running program.",
            ["method"],
            registry=registry,
            buckets=_BUCKETS,
        )
        self._phase_seconds = prometheus.Histogram(
            "vch_container_start_phase_seconds",
            "How long each phase of the starts took.",
            ["method", "phase"],
            registry=registry,
            buckets=_BUCKETS,
        )
        self._containers = prometheus.Gauge("vch_containers", "Containers by state.", ["state"], registry=registry)
        self._templates = prometheus.Gauge(
            "vch_templates", "Templates of instant clone by state.", ["state"], registry=registry
        )
        self._pooled = prometheus.Gauge(
            "vch_pooled_clones", "Clones that wait for a container to start.", registry=registry
        )
        self._disk_bytes = prometheus.Gauge(
            "vch_template_disk_bytes", "What templates take of the host's disk.", registry=registry
        )
        self._resident_bytes = prometheus.Gauge(
            "vch_template_resident_bytes",
            "What templates take of the host's memory.",
            registry=registry,
        )
        self._vsphere = prometheus.Summary(
            "vch_vsphere_call_seconds",
            "How long calls to vSphere took, by method; WaitForUpdatesEx waits on purpose.",
            ["method"],
            registry=registry,
        )

    def vsphere_called(self, method: str, seconds: float) -> None:
        """A call to vSphere was answered, or broke off. May be called in any thread."""
        self._vsphere.labels(method).observe(seconds)

    def started(self, method: str, phases_ns: Mapping[str, int]) -> None:
        """A container was started: "cold-boot", "clone" or "pooled"; its phases follow each other."""
        self._starts.labels(method).inc()
        self._seconds.labels(method).observe(sum(phases_ns.values()) / 1e9)
        for phase, took_ns in phases_ns.items():
            self._phase_seconds.labels(method, phase).observe(took_ns / 1e9)

    def start_failed(self) -> None:
        """A container could not be started."""
        self._failures.inc()

    def render(
        self,
        containers: Iterable[types_pb2.ContainerStatus.ValueType],
        templates: Iterable[system_pb2.Template],
    ) -> str:
        """Everything as text, with what there is right now: the status of each container, and the templates."""
        templates = list(templates)
        _set(
            self._containers,
            _CONTAINER_STATES,
            (types_pb2.ContainerStatus.Name(status).removeprefix("CONTAINER_STATUS_") for status in containers),
        )
        _set(
            self._templates,
            _TEMPLATE_STATES,
            (system_pb2.Template.State.Name(one.state).removeprefix("STATE_") for one in templates),
        )
        self._pooled.set(sum(one.pooled for one in templates))
        self._disk_bytes.set(sum(one.disk_bytes for one in templates))
        self._resident_bytes.set(sum(one.resident_bytes for one in templates))
        return prometheus.generate_latest(self._registry).decode()


def _set(gauge: prometheus.Gauge, states: Iterable[str], found: Iterable[str]) -> None:
    """Counts what was found; a state without anything is 0, so that graphs have no holes."""
    count = Counter(state.lower() for state in found)
    for state in states:
        gauge.labels(state).set(count[state])
