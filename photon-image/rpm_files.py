"""RPM files: whether a trusted key signed them, and what is in them. Knows nothing of repositories.

A file is named NAME-[EPOCH:]VERSION-RELEASE.ARCH.rpm, whatever it was called where it came from.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from errors import BuildError

# rpm as it comes: settings of the machine or of who runs this could name other keys to believe.
_AS_IT_COMES = ("--rcfile", "/usr/lib/rpm/rpmrc", "--macros", "/usr/lib/rpm/macros")
_FULL_NAME = "%{NAME}-%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}.%{ARCH}.rpm"


def verify(files: Sequence[Path], keys: Sequence[Path]) -> None:
    """Raises BuildError unless each of `files` carries a good signature by one of `keys`, over header and payload.

    The keys are those given and no others: rpm's own database of trusted keys is not used. What is signed says which
    package it is, and has to be the one that the file is named for: else a repository could pass an old package off as
    a new one.
    """
    if not keys:
        raise BuildError("no key to check packages with", hint="give the repository's public key with --gpg-key")
    with tempfile.TemporaryDirectory() as database:
        for key in keys:
            command = ("rpmkeys", *_AS_IT_COMES, "--dbpath", database, "--import", str(key))
            _run(*command, failure=f"{key} is no key that rpm can read")
        for file in files:
            # "all": neither a missing signature nor a missing digest is let pass.
            command = ("rpmkeys", *_AS_IT_COMES, "--dbpath", database, "--define", "_pkgverify_level all")
            failure = f"{file.name} has no good signature by a key that was given"
            _run(*command, "--checksig", "-v", str(file), failure=failure)
            if (name := _full_name(file)) != file.name:
                raise BuildError(
                    f"{file.name} is in truth {name}", hint="find out who changed it, or use another mirror"
                )


def _full_name(file: Path) -> str:
    query = ("--query", "--nosignature", "--nodigest", "--queryformat", _FULL_NAME, "--package", str(file))
    said = _run("rpm", *_AS_IT_COMES, *query, failure=f"{file.name} cannot be read")
    return said.decode(errors="replace").replace("-0:", "-", 1)  # no epoch and epoch 0 are the same


def unpack(file: Path, target: Path) -> None:
    """Unpacks into `target`; owners are left out, and absolute paths stay within it. Runs nothing of the package."""
    target.mkdir(parents=True, exist_ok=True)
    failure = f"{file.name} cannot be unpacked"
    with tempfile.TemporaryFile() as archive:
        _run("rpm2cpio", str(file), failure=failure, stdout=archive.fileno())
        archive.seek(0)
        options = ("--make-directories", "--unconditional", "--no-absolute-filenames", "--no-preserve-owner")
        _run("cpio", "--extract", "--quiet", *options, failure=failure, stdin=archive.fileno(), cwd=target)


def _run(
    *command: str, failure: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.PIPE, cwd: Path | None = None
) -> bytes:
    """What it wrote to standard output, if that is not sent elsewhere."""
    try:
        result = subprocess.run(command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, cwd=cwd)
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is missing", hint="run: sudo apt-get install rpm cpio") from error
    if result.returncode != 0:
        said = b"\n".join(text for text in (result.stdout, result.stderr) if text).decode(errors="replace").strip()
        raise BuildError(f"{failure}:\n{said}")
    return result.stdout or b""
