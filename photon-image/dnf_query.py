"""Asks RPM repositories through dnf's library: which packages there are, and their files.

A program of its own, for the system's Python: dnf is no package of the Python index. It reads one request (JSON) from
standard input and writes one answer to standard output: {"packages": [...]}, or {"error": "..."} and status 1. Nothing
of the machine's own dnf is read or written: no configuration, repositories, plug-ins, installed packages or caches.

Signatures of packages are not its business (see rpm_files.py); it does check that metadata is signed where that is
asked for, and that everything has the digests that the metadata names.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import dnf  # type: ignore[import-not-found]

_TIMEOUT_S = 30
_RETRIES = 3


def main() -> int:
    request = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        with _opened(request) as base:
            answer = {"packages": [_described(package) for package in _asked(base, request)]}
    except (dnf.exceptions.Error, OSError) as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)
    return "error" in answer


def _opened(request: dict[str, Any]) -> Any:
    """dnf with the repositories' metadata loaded; kept below "scratch", so that later requests see the same."""
    scratch = Path(request["scratch"])
    configuration = dnf.conf.Conf()
    for option in ("cachedir", "persistdir", "logdir", "installroot"):
        directory = scratch / option
        directory.mkdir(exist_ok=True)
        setattr(configuration, option, str(directory))
    configuration.reposdir = []
    configuration.varsdir = []
    configuration.plugins = False
    configuration.substitutions["arch"] = configuration.substitutions["basearch"] = request["architecture"]
    base = dnf.Base(configuration)
    for number, url in enumerate(request["repositories"]):
        base.repos.add_new_repo(
            f"repository-{number}",
            configuration,
            baseurl=[url],
            gpgkey=request["keys"],
            repo_gpgcheck=request["signed_metadata"],
            metadata_expire=-1,
            skip_if_unavailable=False,
            timeout=_TIMEOUT_S,
            retries=_RETRIES,
        )
    base.fill_sack(load_system_repo=False)
    return base


def _asked(base: Any, request: dict[str, Any]) -> list[Any]:
    available = base.sack.query().available().filter(arch=[request["architecture"], "noarch"])
    found = []
    for wanted in request["wanted"]:
        matching = available.filter(**wanted).filter(latest=1)  # query.latest() would give one of each architecture
        found += sorted(matching, key=lambda package: (package.arch, package.reponame))[:1]
    if target := request.get("download_to"):
        base.download_packages(found)
        for package in found:  # of a repository on a local disk dnf hands out the original
            shutil.copyfile(package.localPkg(), Path(target) / _file(package))
    return found


def _described(package: Any) -> dict[str, Any]:
    return {
        "name": package.name,
        "evr": package.evr,
        "version": package.version,
        "file": _file(package),
        "requires": sorted({str(dependency).split()[0] for dependency in package.requires}),
    }


def _file(package: Any) -> str:
    return f"{package.name}-{package.evr}.{package.arch}.rpm"


if __name__ == "__main__":
    sys.exit(main())
