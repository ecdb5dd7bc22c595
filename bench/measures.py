"""Everything that is measured, in the order in which it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bench import idle, starts, streams
from bench.endpoints import Endpoint
from bench.sampling import IDLE, Measure, Sample, SampleError, Sampler, container, docker, seconds
from bench.vch_endpoint import Vch


@contextmanager
def _template(endpoint: Endpoint) -> Iterator[Sampler]:
    def sample() -> Sample:
        assert isinstance(endpoint, Vch)
        made = [one.made_in_ns / 1e9 for one in endpoint.templates()]
        if not made:
            raise SampleError("it has no template")
        return Sample(max(made))

    yield sample


@contextmanager
def _exec(endpoint: Endpoint) -> Iterator[Sampler]:
    with container(endpoint, *IDLE) as idling:
        yield lambda: Sample(seconds(lambda: docker(endpoint, "exec", idling, "true")))


@contextmanager
def _create_rm(endpoint: Endpoint) -> Iterator[Sampler]:
    yield lambda: Sample(seconds(lambda: docker(endpoint, "rm", docker(endpoint, "create", "busybox", "true"))))


def measures(idle_containers: int) -> tuple[Measure, ...]:
    """The template first, while nothing else is up beside the VCH that makes it; the many idle ones last, alone."""
    return (
        Measure("template", "making a template, once", "s", _template, endpoints=("vch",), most_runs=1),
        starts.RUN_NO_NETWORK,
        starts.API_START,
        starts.RUN,
        Measure("exec", "docker exec C true", "s", _exec),
        Measure("create-rm", "docker create + rm", "s", _create_rm),
        streams.ATTACH,
        streams.LOGS,
        idle.FEW,
        starts.PARALLEL,
        starts.SEQUENTIAL,
        idle.many(idle_containers),
    )
