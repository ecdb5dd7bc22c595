"""The command line of the benchmark."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType

import click

from bench import report, vch_endpoint
from bench.dockerd import dockerd
from bench.endpoints import Endpoint, EndpointError, load_image
from bench.lineup import Lineup
from bench.measures import measures
from bench.results import Result
from bench.sampling import Measure, SampleError
from bench.targets import verdicts

_IMAGE = Path(__file__).resolve().parent.parent / "build" / "images" / "busybox.tar"
_IDLE = 64
_NAMES = [one.name for one in measures(_IDLE)]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--guest-image", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=_IMAGE)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Samples of each quick measure")
@click.option("--starts", type=click.IntRange(1), default=30, show_default=True, help="Samples of each kind of start")
@click.option("--idle", type=click.IntRange(1), default=_IDLE, show_default=True, help="Containers idle at once")
@click.option("--only", "names", multiple=True, type=click.Choice(_NAMES), help="Repeatable")
@click.option("--no-dockerd", is_flag=True, help="Measure the VCH alone")
@click.option("--json", "as_json", is_flag=True, help="For programs")
@click.option("--save", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write that to a file too")
def main(
    guest_image: Path,
    image: Path,
    runs: int,
    starts: int,
    idle: int,
    names: tuple[str, ...],
    no_dockerd: bool,
    as_json: bool,
    save: Path | None,
) -> None:
    """Measure a VCH next to dockerd, in turns, and say which targets are met.

    Both are started for it, the VCH in three flavours: with its pool of clones (vch), cloning for each start
    (vch-clone), and booting for each (vch-cold). They leave nothing behind.
    """
    if shutil.which("docker") is None:
        raise click.ClickException("the docker CLI is needed: it is what gets measured (Debian: docker.io, docker-cli)")
    signal.signal(signal.SIGTERM, _interrupt)
    chosen = [one for one in measures(idle) if not names or one.name in names]
    results = []
    # Unix socket paths are short: the state directory has to be.
    with tempfile.TemporaryDirectory(prefix="vch-bench-", dir="/var/tmp") as scratch:
        lineup = _lineup(Path(scratch), guest_image.absolute(), image, with_dockerd=not no_dockerd)
        with lineup:
            for at, measure in enumerate(chosen):
                endpoints = lineup.get(measure.endpoints)
                if "vch" not in (endpoint.name for endpoint in endpoints):
                    raise click.ClickException(f"vch: {lineup.described['vch']}")
                results.append(_measure(measure, endpoints, starts if measure.many else runs))
                lineup.keep(name for later in chosen[at + 1 :] for name in later.endpoints)
    data = json.dumps(report.as_data(lineup.described, results, verdicts(results)), indent=2)
    if save is not None:
        save.write_text(f"{data}\n")
    click.echo(data if as_json else report.as_table(lineup.described, results, verdicts(results)))
    for words in lineup.left:
        click.echo(words, err=True)
    sys.exit(bool(lineup.left) or any(result.failures for result in results))


def _lineup(scratch: Path, guest_image: Path, image: Path, *, with_dockerd: bool) -> Lineup:
    """All endpoints by name; each takes the image when it is brought up."""
    openers = {
        "vch": partial(vch_endpoint.pooled, scratch, guest_image),
        "vch-clone": partial(vch_endpoint.cloning, scratch, guest_image),
        "vch-cold": partial(vch_endpoint.cold, scratch, guest_image),
    }
    if with_dockerd:
        openers["dockerd"] = partial(dockerd, scratch)
    return Lineup(openers, lambda endpoint: load_image(endpoint, image))


def _measure(measure: Measure, endpoints: list[Endpoint], runs: int) -> Result:
    """Takes the samples in turns, so that whatever else this machine does meets all."""
    result = Result(measure.name, measure.what, measure.unit, measure.more_is_better)
    most = {endpoint.name: min(runs, measure.most_runs, endpoint.most_runs) for endpoint in endpoints}
    with ExitStack() as stack:
        samplers = {}
        for endpoint in endpoints:
            try:
                samplers[endpoint] = stack.enter_context(measure.prepare(endpoint))
            except SampleError as error:
                result.fail(endpoint.name, str(error))
        for turn in range(max(most.values(), default=0)):
            order = list(samplers) if turn % 2 == 0 else list(reversed(samplers))
            for endpoint in (one for one in order if turn < most[one.name]):
                _note(f"{measure.name}: {endpoint.name} {turn + 1}/{most[endpoint.name]}")
                try:
                    result.add(endpoint.name, samplers[endpoint]())
                    if measure.starts:
                        endpoint.settle()
                except (SampleError, EndpointError) as error:
                    result.fail(endpoint.name, str(error))
                    del samplers[endpoint]
    return result


def _note(text: str) -> None:
    """Progress, on a terminal in one line that is written over."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)
    else:
        click.echo(text, err=True)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
