"""The command line of the benchmark."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import click

from bench import report
from bench.endpoints import Endpoint, EndpointError, dockerd, load_image, vch
from bench.measures import MEASURES, Measure, SampleError

_IMAGE = Path(__file__).resolve().parent.parent / "build" / "images" / "busybox.tar"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--guest-image", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=_IMAGE)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Samples of each quick measure")
@click.option("--only", "names", multiple=True, type=click.Choice([one.name for one in MEASURES]), help="Repeatable")
@click.option("--no-dockerd", is_flag=True, help="Measure the VCH alone")
@click.option("--json", "as_json", is_flag=True, help="For programs")
def main(guest_image: Path, image: Path, runs: int, names: tuple[str, ...], no_dockerd: bool, as_json: bool) -> None:
    """Measure a VCH next to dockerd, in turns. Both are started for it and leave nothing behind."""
    if shutil.which("docker") is None:
        raise click.ClickException("the docker CLI is needed: it is what gets measured (Debian: docker.io, docker-cli)")
    signal.signal(signal.SIGTERM, _interrupt)
    measures = [one for one in MEASURES if not names or one.name in names]
    # Unix socket paths are short: the state directory has to be.
    with tempfile.TemporaryDirectory(prefix="vch-bench-", dir="/var/tmp") as scratch, ExitStack() as stack:
        try:
            endpoints = [stack.enter_context(vch(Path(scratch), guest_image.absolute()))]
        except EndpointError as error:
            raise click.ClickException(str(error)) from error
        if not no_dockerd:
            try:
                endpoints.append(stack.enter_context(dockerd(Path(scratch))))
            except EndpointError as error:
                _note(f"without dockerd: {error}")
        try:
            for endpoint in endpoints:
                load_image(endpoint, image)
        except EndpointError as error:
            raise click.ClickException(str(error)) from error
        results = [_measure(one, endpoints, runs) for one in measures]
        described = {endpoint.name: endpoint.description for endpoint in endpoints}
    if as_json:
        click.echo(json.dumps(report.as_data(described, results), indent=2))
    else:
        click.echo(report.as_table(described, results))
    sys.exit(any(result.failures for result in results))


def _measure(measure: Measure, endpoints: list[Endpoint], runs: int) -> report.Result:
    """Takes the samples in turns, so that whatever else this machine does meets both."""
    result = report.Result(measure.name, measure.unit, measure.more_is_better)
    rounds = min(runs, measure.most_runs)
    with ExitStack() as stack:
        samplers = {}
        for endpoint in endpoints:
            try:
                samplers[endpoint.name] = stack.enter_context(measure.prepare(endpoint))
            except SampleError as error:
                result.failures[endpoint.name] = str(error)
        for turn in range(rounds):
            order = list(samplers) if turn % 2 == 0 else list(reversed(samplers))
            for name in order:
                _note(f"{measure.name}: {name} {turn + 1}/{rounds}")
                try:
                    result.samples.setdefault(name, []).append(samplers[name]())
                except SampleError as error:
                    result.failures[name] = str(error)
                    del samplers[name]
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
