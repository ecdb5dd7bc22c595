"""How a VCH on vSphere grows: `python -m bench.vsphere [--sizes 50,100,250,500]`.

The simulator (vcsim) stands for vCenter, and agents without VMs for all guests. At each size some more containers are
made, started, listed and removed, eight at a time, and the port layer is killed and comes back. What is told of each
operation is how long it took, how many calls to vSphere it made, and how much CPU time each part used for it: the port
layer's is the product's own cost, vcsim's is the simulator's, which is by far the most.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from bench.docker_api import Connection, call
from bench.endpoints import EndpointError
from bench.vsphere_site import Reading, Site, site, timed

_IMAGE = Path(__file__).resolve().parent.parent / "build" / "images" / "busybox.tar"
_AT_ONCE = 8
_SAMPLES = 40
_LISTINGS = 5
# Long polls wait on purpose: theirs is nobody's time.
_WAITS = "WaitForUpdatesEx"


@dataclass(frozen=True)
class Figures:
    """One operation with so many containers there. Times in seconds, CPU and calls for each single operation."""

    size: int
    operation: str
    median: float
    p90: float
    calls: dict[str, float]
    in_calls: float
    cpu: dict[str, float]


class Bench:
    """Containers on a site, by their ids."""

    def __init__(self, place: Site) -> None:
        self._site = place
        self._threads = ThreadPoolExecutor(_AT_ONCE)
        self._local = threading.local()
        self.ids: list[str] = []

    def operations(self, samples: int, size: int) -> Iterator[Figures]:
        """Each on so many containers of which there are `size` in the end, the last ones; those go again."""
        yield self.create(samples, size)
        last = self.ids[-samples:]
        yield self.start(last, size)
        yield self.listings(size)
        yield self.inspect(last, size)
        yield self.recovery(size)
        yield self.stop(last, size)
        yield self.remove(last, size)

    def create(self, count: int, size: int) -> Figures:
        wanted = {"Image": "busybox", "Cmd": ["sleep", "inf"]}
        made: list[str] = []
        figures = self._measure(
            size, "create", range(count), lambda _: made.append(self._call("POST", "/containers/create", wanted)["Id"])
        )
        self.ids += made
        return figures

    def start(self, ids: list[str], size: int) -> Figures:
        return self._measure(size, "start", ids, lambda one: self._call("POST", f"/containers/{one}/start"))

    def inspect(self, ids: list[str], size: int) -> Figures:
        return self._measure(size, "inspect", ids, lambda one: self._call("GET", f"/containers/{one}/json"))

    def stop(self, ids: list[str], size: int) -> Figures:
        return self._measure(size, "stop", ids, lambda one: self._call("POST", f"/containers/{one}/stop"))

    def remove(self, ids: list[str], size: int) -> Figures:
        figures = self._measure(size, "remove", ids, lambda one: self._call("DELETE", f"/containers/{one}"))
        self.ids = [one for one in self.ids if one not in ids]
        return figures

    def listings(self, size: int) -> Figures:
        """`docker ps`, one after the other, each checked."""
        return self._measure(size, "docker ps", range(_LISTINGS), lambda _: self._list(size), at_once=1)

    def recovery(self, size: int) -> Figures:
        """From a port layer that was killed to a `docker ps` that shows every container running."""
        before = self._site.read().of_the_stand()
        self._site.kill_port_layer()
        seconds = timed()
        self._site.up()
        self._local = threading.local()
        self._list(size)
        return _figures(size, "kill -9, vch up, docker ps", [seconds()], self._site.read().since(before))

    def close(self) -> None:
        self._threads.shutdown()

    def _list(self, size: int) -> None:
        environment = {"DOCKER_HOST": self._site.docker_host, "PATH": "/usr/local/bin:/usr/bin:/bin"}
        command = ("docker", "ps", "--quiet", "--no-trunc")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        if len(found := done.stdout.split()) != size or set(found) != set(self.ids):
            raise EndpointError(f"docker ps shows {len(found)} containers that run instead of {size}")

    def _measure(
        self, size: int, name: str, things: Iterable[Any], act: Callable[[Any], Any], at_once: int = _AT_ONCE
    ) -> Figures:
        def one(thing: Any) -> float:
            seconds = timed()
            act(thing)
            return float(seconds())

        before = self._site.read()
        samples = [one(thing) for thing in things] if at_once == 1 else list(self._threads.map(one, things))
        return _figures(size, name, samples, self._site.read().since(before))

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Each thread has a connection of its own."""
        if not hasattr(self._local, "connection"):
            self._local.connection = Connection(self._site.docker_host)
        return call(self._local.connection, method, path, body)


def _figures(size: int, name: str, samples: list[float], used: Reading) -> Figures:
    count = len(samples)
    calls = {method: value / count for method, value in sorted(used.calls.items()) if value}
    return Figures(
        size,
        name,
        statistics.median(samples),
        sorted(samples)[int(0.9 * (count - 1))],
        calls,
        sum(value for method, value in used.seconds.items() if method != _WAITS) / count,
        {part: value / count for part, value in used.cpu.items()},
    )


def _run(place: Site, sizes: list[int]) -> list[Figures]:
    found: list[Figures] = []
    with closing(Bench(place)) as bench:
        for size in sizes:
            samples = min(_SAMPLES, size - len(bench.ids))
            if (fill := size - samples - len(bench.ids)) > 0:
                _note(f"{size}: making {fill} containers")
                bench.create(fill, size)
                bench.start(bench.ids[-fill:], size)
            for figures in bench.operations(samples, size):
                found.append(figures)
                _note(_line(figures))
    return found


def _note(text: str) -> None:
    click.echo(text, err=True)


_HEAD = f"{'operation':<28}{'at':>5}{'median':>10}{'p90':>10}{'calls':>8}{'in calls':>10}"
_PARTS = ("portlayer", "personality", "vcsim")


def _line(one: Figures) -> str:
    calls = sum(value for method, value in one.calls.items() if method != _WAITS)
    cpu = "".join(f"{one.cpu.get(part, 0) * 1e3:>13.1f}" for part in _PARTS)
    return f"{one.operation:<28}{one.size:>5}{one.median * 1e3:>10.0f}{one.p90 * 1e3:>10.0f}{calls:>8.1f}" + (
        f"{one.in_calls * 1e3:>10.0f}{cpu}"
    )


def table(found: list[Figures]) -> str:
    """For people, in milliseconds; the growth is that of the port layer's own CPU time from the least to the most."""
    lines = [_HEAD + "".join(f"{part:>13}" for part in _PARTS)]
    for name in dict.fromkeys(one.operation for one in found):
        rows = [one for one in found if one.operation == name]
        lines += [_line(one) for one in rows]
        first, last = rows[0], rows[-1]
        if first is not last and first.cpu.get("portlayer") and first.cpu.get("vcsim"):
            growth = {part: last.cpu[part] / first.cpu[part] for part in ("portlayer", "vcsim")}
            words = ", ".join(f"{part} {factor:.1f}" for part, factor in growth.items())
            lines.append(f"  growth {first.size} -> {last.size}: time {last.median / first.median:.1f}, CPU of {words}")
        methods = ", ".join(f"{method} {value:.1f}" for method, value in last.calls.items())
        lines += [f"  calls: {methods or 'none'}", ""]
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--sizes", default="50,100,250,500", show_default=True, help="Numbers of containers, ascending")
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=_IMAGE)
@click.option("--save", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Figures as JSON")
def main(sizes: str, image: Path, save: Path | None) -> None:
    """Measure how a VCH on vSphere grows, on VMware's simulator."""
    with tempfile.TemporaryDirectory(prefix="vch-bench-", dir="/var/tmp") as scratch, site(Path(scratch)) as place:
        loaded = subprocess.run(
            ["docker", "load", "--quiet", "--input", str(image)],
            env={"DOCKER_HOST": place.docker_host, "PATH": "/usr/local/bin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        if loaded.returncode != 0:
            raise click.ClickException(loaded.stderr)
        found = _run(place, [int(size) for size in sizes.split(",")])
    if save is not None:
        save.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    click.echo(table(found))


if __name__ == "__main__":
    sys.exit(main())
