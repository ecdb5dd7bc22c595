"""The program `vch`: its commands and options. What they do is in the modules beside this one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from vch import launch, passwords, sense, settings, state, vsphere_options
from vch import status as status_of
from vch.config_file import config_option
from vch.errors import ConfigurationError
from vch.settings import Settings


def _state_options(command: Any) -> Any:
    """--name and --state-dir, which every command takes to say which VCH it means."""
    path = click.Path(file_okay=False, path_type=Path)
    command = click.option(
        "--state-dir", type=path, help="Where it keeps everything  [default: $XDG_STATE_HOME/vch/NAME]"
    )(command)
    return click.option("--name", default="default", show_default=True, help="Name of the VCH")(command)


def _state_dir(name: str, state_dir: Path | None) -> Path:
    return settings.default_state_dir(name) if state_dir is None else state_dir.absolute()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="virtual-container-host", prog_name="vch")
def main() -> None:
    """A Docker endpoint whose containers are virtual machines.

    `vch up` brings one up; point DOCKER_HOST at it and use docker as ever.
    """


@main.command()
@_state_options
@click.option("--host", "hosts", multiple=True, help="unix://PATH or tcp://ADDRESS:PORT for Docker clients; repeatable")
@click.option("--grpc", "grpc", help="unix://PATH of the gRPC API")
@click.option("--guest-image", type=click.Path(file_okay=False, path_type=Path), help="Directory made by `make image`")
@click.option(
    "--default-memory", metavar="SIZE", callback=sense.size, help="Memory of a VM without --memory, such as 512m"
)
@click.option("--default-cpus", type=click.IntRange(1), help="CPUs of a VM without --cpus")
@click.option("--accelerator", type=click.Choice(["kvm", "tcg"]), help="Default: KVM if it proves to work")
@click.option(
    "--channel", type=click.Choice(["auto", "virtio", "vsock"]), help="How agents are reached  [default: virtio]"
)
@click.option("--no-clone", is_flag=True, help="Boot a kernel for every start instead of cloning a template")
@click.option(
    "--pool", type=click.IntRange(0, 64), metavar="N", help="Clones kept waiting, at most  [default: 12, on vSphere 2]"
)
@click.option(
    "--pool-memory", metavar="SIZE", callback=sense.size, help="Memory of the waiting clones, at most  [default: 1g]"
)
@click.option("--tlscacert", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CA of the clients")
@click.option("--tlscert", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Certificate for TCP")
@click.option("--tlskey", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its private key")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option("--ready-timeout", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Seconds per part")
@click.option("--detach", "-d", is_flag=True, help="Return once it serves")
@vsphere_options.vsphere_options
@config_option
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--password-fd", type=int, hidden=True)
def up(
    name: str,
    state_dir: Path | None,
    ready_timeout: float,
    detach: bool,
    ready_fd: int | None,
    password_fd: int | None,
    **options: Any,
) -> None:
    """Bring a VCH up; without --detach, serve until Ctrl-C. Containers keep running when it ends.

    With --target its containers are VMs on vSphere, else on this machine's QEMU. What is said of vSphere holds for the
    next time too, until --target is said again.
    """
    directory = _state_dir(name, state_dir)
    if state_dir is not None and not _is_said("name"):
        last = state.read_last(directory)
        name = name if last is None else last.name
    chosen = _settings(name, directory, options)
    if password_fd is None:  # else who started this process has seen to it
        state.require_down(directory)
    password = None
    if chosen.vsphere is not None:
        password = passwords.find(chosen.vsphere) if password_fd is None else passwords.from_descriptor(password_fd)
    if detach:
        arguments = [*chosen.up_arguments(), "--ready-timeout", str(ready_timeout)]
        launch.detached(chosen, password, arguments, timeout_s=ready_timeout)
        launch.tell(chosen)
    else:
        launch.foreground(chosen, password, timeout_s=ready_timeout, ready_fd=ready_fd)


@main.command()
@_state_options
@click.option("--force", is_flag=True, help="Remove its containers too, running or not")
@vsphere_options.password_file_option
@click.option("--ready-timeout", type=click.FloatRange(0.1), default=60.0, hidden=True)
def down(name: str, state_dir: Path | None, force: bool, password_file: Path | None, ready_timeout: float) -> None:
    """End a VCH. Its containers keep running, and the next `up` finds them, unless --force is given."""
    directory = _state_dir(name, state_dir)
    if force:
        names, stays = launch.remove_all(directory, password_file, timeout_s=ready_timeout)
        for removed in names:
            click.echo(f"removed container {removed}")
        for words in stays:
            click.echo(f"not removed: {words}")
    pid = state.holder(directory)
    if pid is None:
        click.echo(f"no VCH is up on {directory}")
        return
    launch.end(directory, pid)
    click.echo(f"the VCH on {directory} is down")


@main.command()
@_state_options
@click.option("--json", "as_json", is_flag=True, help="For programs")
def status(name: str, state_dir: Path | None, as_json: bool) -> None:
    """Show whether a VCH serves. Exit code 0: it does; 1: it is up but does not answer; 3: it is not up."""
    facts, code = status_of.facts(_state_dir(name, state_dir))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        status_of.show(facts)
    sys.exit(code)


@main.command()
@_state_options
@click.option("--guest-image", type=click.Path(file_okay=False, path_type=Path), help="Directory made by `make image`")
@vsphere_options.vsphere_options
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs")
def doctor(name: str, state_dir: Path | None, guest_image: Path | None, as_json: bool, **options: Any) -> None:
    """Check this machine, or vSphere, and say what each finding costs. Exit code 1 when containers cannot run.

    Of a VCH on vSphere, `vch doctor` checks what its last `vch up` was told of.
    """
    from vch import doctor as checks  # with the hypervisor drivers, which no other command needs

    directory, image = _state_dir(name, state_dir), guest_image or settings.default_guest_image()
    vsphere = _vsphere(directory, options)
    if vsphere is None:
        findings = checks.examine(directory, image)
    else:
        findings = checks.examine_vsphere(vsphere, passwords.find(vsphere), directory, image)
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            _show_finding(finding.name.ljust(width), finding.level, finding.found, finding.costs)
    sys.exit(1 if any(finding.level == "fail" for finding in findings) else 0)


def _is_said(option: str) -> bool:
    """Whether the command line has it."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def _settings(name: str, directory: Path, options: dict[str, Any]) -> Settings:
    tls = settings.make_tls(options["tlscacert"], options["tlscert"], options["tlskey"])
    hosts = tuple(options["hosts"]) or (settings.default_socket(name, directory, "docker.sock"),)
    grpc = options["grpc"] or settings.default_socket(name, directory, "portlayer.sock")
    settings.check_addresses(grpc, hosts, tls)
    vsphere = _vsphere(directory, options)
    return Settings(
        name=name,
        state_dir=directory,
        hosts=hosts,
        grpc=grpc,
        guest_image=(options["guest_image"] or settings.default_guest_image()).absolute(),
        default_memory=options["default_memory"],
        default_cpus=options["default_cpus"],
        accelerator=options["accelerator"],
        channel=options["channel"],
        clone=not options["no_clone"],
        pool=options["pool"],
        pool_memory=options["pool_memory"],
        tls=tls,
        log_level=options["log_level"],
        vsphere=vsphere,
    )


def _vsphere(directory: Path, options: dict[str, Any]) -> vsphere_options.Vsphere | None:
    """What is meant of vSphere, with what was said last."""
    last = state.read_last(directory)
    chosen = vsphere_options.chosen(options, last.vsphere if last else None)
    if chosen is not None:
        for option in ("accelerator", "channel"):
            if options.get(option):
                raise ConfigurationError(f"--{option} is for QEMU: it makes no sense with --target {chosen.target}")
        sense.vsphere_settings(chosen)  # what makes no sense is said before a password is asked for
    return chosen


def _show_finding(name: str, level: str, found: str, costs: str) -> None:
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}[level]
    click.echo(f"{click.style(f'{level:<4}', fg=colour)}  {name}  {found}")
    if costs:
        click.echo(f"      {'':<{len(name)}}  -> {costs}")
