"""`python -m portlayer.main`: one port layer, until SIGTERM or SIGINT. Container VMs go on without it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import click
import uvloop

from portlayer import config
from portlayer.errors import InvalidArgumentError, PortLayerError
from portlayer.server import serve
from portlayer.vsphere_options import settings_of, vsphere_options

_MAX_DESCRIPTORS = 1 << 16


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else config.parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.option("--state-dir", type=click.Path(path_type=Path), required=True, help="Where everything is kept.")
@click.option("--grpc", "address", required=True, help="Socket to serve on, unix:///path.")
@click.option(
    "--guest-image", type=click.Path(path_type=Path), required=True, help="Directory of kernel and initramfs."
)
@click.option("--name", default="", help="Name of this VCH, for people.")
@click.option("--default-memory", type=_Size(), default=config.DEFAULT_MEMORY_BYTES, help="VM memory, as 1g.")
@click.option("--default-cpus", type=click.IntRange(1, 255), default=config.DEFAULT_CPUS, help="CPUs of a VM.")
@click.option("--accelerator", type=click.Choice(["kvm", "tcg"]), help="Instead of finding out by a proof boot.")
@click.option(
    "--channel", type=click.Choice(["auto", "virtio", "vsock"]), help="How agents are reached; default: virtio."
)
@click.option("--no-clone", is_flag=True, help="Boot a kernel for every start instead of cloning a template.")
@click.option(
    "--pool",
    "pool_size",
    type=click.IntRange(0, config.MAX_POOL_SIZE),
    help=f"Clones that wait, at most; {config.DEFAULT_POOL_SIZE}, on vSphere {config.DEFAULT_VSPHERE_POOL_SIZE}.",
)
@click.option(
    "--pool-memory", type=_Size(), default=config.DEFAULT_POOL_MEMORY_BYTES, help="Memory of all that wait, at most."
)
@vsphere_options
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.option("--ready-fd", type=int, help='Descriptor that gets "ready" once the API is served.')
def main(
    state_dir: Path,
    address: str,
    guest_image: Path,
    name: str,
    default_memory: int,
    default_cpus: int,
    accelerator: str | None,
    channel: str | None,
    no_clone: bool,
    pool_size: int | None,
    pool_memory: int,
    log_level: str,
    ready_fd: int | None,
    **vsphere: Any,
) -> None:
    """Serve the port layer's gRPC API."""
    logging.basicConfig(
        stream=sys.stderr,
        level=log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    try:
        on_vsphere = settings_of(vsphere)
        if on_vsphere is not None and (accelerator or channel):
            raise InvalidArgumentError("--accelerator and --channel are for QEMU: they make no sense with --target")
    except PortLayerError as error:
        raise click.UsageError(str(error)) from error
    quieten()
    settings = config.Settings(
        state_dir=state_dir.absolute(),
        grpc=address,
        guest_image=guest_image.absolute(),
        name=name,
        default_memory_bytes=default_memory,
        default_cpus=default_cpus,
        accelerator=accelerator,
        channel=channel or config.DEFAULT_CHANNEL,
        clone=not no_clone,
        pool_size=config.pool_size(pool_size, on_vsphere),
        pool_memory_bytes=pool_memory,
        vsphere=on_vsphere,
    )
    raise_descriptor_limit()
    try:
        uvloop.run(_run(settings, ready_fd))
    except PortLayerError as error:
        raise click.ClickException(str(error)) from error


def quieten() -> None:
    """Libraries that tell of every request: of URLs, where tickets are, and of answers, where cookies are."""
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def raise_descriptor_limit() -> None:
    """Each VM takes some, and a thousand strangers may stand at the serial concentrator's door: 1024 are not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _run(settings: config.Settings, ready_fd: int | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with serve(settings):
        logging.getLogger(__name__).info("serving %s", settings.grpc)
        if ready_fd is not None:
            with contextlib.suppress(BrokenPipeError), os.fdopen(ready_fd, "wb") as ready:
                ready.write(b"ready\n")
        await stopping.wait()


if __name__ == "__main__":
    main()
