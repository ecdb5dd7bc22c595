"""The program: `python -m personality.main --grpc unix://PATH --host unix://PATH`."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import uvloop

from personality.api.routes import PRODUCT, build_router
from personality.backend import Backend
from personality.http.listeners import ListenError, listening
from personality.http.server import Server
from personality.http.tls import server_context

_MAX_DESCRIPTORS = 1 << 16

log = logging.getLogger("personality")


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    grpc: str
    hosts: list[str]
    tls: ssl.SSLContext | None
    ready_fd: int | None


async def serve(options: Options) -> None:
    """Serves until SIGTERM or SIGINT, then ends in order. Raises ListenError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Backend(options.grpc) as backend:
        server = Server(build_router(), backend, product=PRODUCT)
        try:
            async with listening(server, options.hosts, options.tls):
                log.info("serving on %s", ", ".join(options.hosts))
                if options.ready_fd is not None:
                    os.write(options.ready_fd, b"ready\n")
                    os.close(options.ready_fd)
                await stop.wait()
                log.info("ending")
        finally:
            await server.close()


def _raise_descriptor_limit() -> None:
    """Each connection takes two descriptors; the usual 1024 are those of programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _tls_context(authority: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if authority is None and certificate is None and key is None:
        return None
    if authority is None or certificate is None or key is None:
        raise click.UsageError("--tlscacert, --tlscert and --tlskey go together")
    try:
        return server_context(authority, certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise click.ClickException(f"the TLS files cannot be used: {error}") from error


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--grpc", required=True, metavar="unix://PATH", help="The port layer's address.")
@click.option(
    "--host", "hosts", required=True, multiple=True, help="unix://PATH or tcp://ADDRESS:PORT; may be repeated."
)
@click.option("--tlscacert", type=_FILE, help="Clients on TCP must have a certificate signed by this one.")
@click.option("--tlscert", type=_FILE, help="This host's certificate, for TCP.")
@click.option("--tlskey", type=_FILE, help="The key to --tlscert.")
@click.option("--ready-fd", type=click.IntRange(min=0), help='Write "ready" to this descriptor once it serves.')
@click.option(
    "--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]), show_default=True
)
def main(
    grpc: str,
    hosts: tuple[str, ...],
    tlscacert: Path | None,
    tlscert: Path | None,
    tlskey: Path | None,
    ready_fd: int | None,
    log_level: str,
) -> None:
    """Docker's API in front of a port layer."""
    logging.basicConfig(
        stream=sys.stderr,
        level=log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    # At debug, grpc tells of each event loop it meets.
    logging.getLogger("grpc").setLevel(logging.INFO)
    _raise_descriptor_limit()
    options = Options(grpc, list(hosts), _tls_context(tlscacert, tlscert, tlskey), ready_fd)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options))
    except ListenError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
