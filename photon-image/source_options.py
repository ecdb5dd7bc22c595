"""The options that say where packages come from, and the source that they make."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import declaration
import rpm_lock
import rpm_source
import selection
from errors import BuildError
from sources import AptSource, PackageSource

_REPOSITORIES = "VCH_PHOTON_REPOSITORY"  # the environment's say in where Photon's packages are


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", choices=("debian", "photon"), default="debian", help="whose packages (%(default)s)")
    photon = parser.add_argument_group("with --source photon")
    photon.add_argument(
        "--repository",
        metavar="URL",
        action="append",
        help=f"base URL of an RPM repository; can be given again (default: ${_REPOSITORIES}, separated by blanks)",
    )
    photon.add_argument(
        "--gpg-key",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="public key that packages must be signed with; can be given again",
    )
    photon.add_argument("--signed-metadata", action="store_true", help="the repositories' metadata must be signed too")
    photon.add_argument(
        "--kernel",
        choices=("linux-esx", "linux"),
        default="",
        help="linux-esx for vSphere, linux for QEMU (default: the first of them that there is)",
    )
    photon.add_argument("--lock", metavar="FILE", type=Path, help="the packages' versions and digests")
    photon.add_argument("--renew-lock", action="store_true", help="first write the newest packages into --lock FILE")


@contextlib.contextmanager
def source_of(options: argparse.Namespace, declared: Path, cache: Path) -> Iterator[PackageSource]:
    """The source of packages that the options ask for. Renews the lock file when they say so. Raises BuildError."""
    if options.source == "debian":
        _refuse_those_of_photon(options)
        yield AptSource(cache / "packages")
        return
    if not options.lock:
        raise BuildError("Photon's packages are taken from a lock file", hint="name it with --lock FILE")
    repositories = tuple(options.repository or os.environ.get(_REPOSITORIES, "").split())
    access = rpm_source.Access(repositories, tuple(options.gpg_key), options.signed_metadata)
    with rpm_source.opened(access, cache / "rpms") as repository:
        if options.renew_lock:
            _, packages = selection.choose(declaration.read(declared, options.source), repository, options.kernel)
            rpm_lock.write(options.lock, selection.resolve(packages, repository))
        yield rpm_source.LockedSource(options.lock, repository)


def _refuse_those_of_photon(options: argparse.Namespace) -> None:
    names = ("repository", "gpg_key", "signed_metadata", "kernel", "lock", "renew_lock")
    if given := [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]:
        raise BuildError(f"{', '.join(given)}: nothing of Debian's", hint="did you mean --source photon?")
