"""RPM files: whether a trusted key signed them, and what is in them. Knows nothing of repositories."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from errors import BuildError


def verify(files: Sequence[Path], keys: Sequence[Path]) -> None:
    """Raises BuildError unless each of `files` carries a good signature by one of `keys`, over header and payload.

    The keys are those given and no others: rpm's own database of trusted keys is not used.
    """
    if not keys:
        raise BuildError("no key to check packages with", hint="give the repository's public key with --gpg-key")
    with tempfile.TemporaryDirectory() as database:
        for key in keys:
            _run("rpmkeys", "--dbpath", database, "--import", str(key), failure=f"{key} is no key that rpm can read")
        for file in files:
            # "all": neither a missing signature nor a missing digest is let pass.
            command = ("rpmkeys", "--dbpath", database, "--define", "_pkgverify_level all", "--checksig", "-v")
            _run(*command, str(file), failure=f"{file.name} has no good signature by a key that was given")


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
) -> None:
    try:
        result = subprocess.run(command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, cwd=cwd)
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is missing", hint="run: sudo apt-get install rpm cpio") from error
    if result.returncode != 0:
        said = b"\n".join(text for text in (result.stdout, result.stderr) if text).decode(errors="replace").strip()
        raise BuildError(f"{failure}:\n{said}")
