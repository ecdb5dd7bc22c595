"""Real RPM repositories for tests: packages made by rpmbuild, signed by throw-away keys, listed by createrepo_c."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RELEASE = "1.ph5"


@dataclass(frozen=True)
class Signer:
    """A key of GnuPG's in a home of its own; `key` is the file with its public half."""

    home: Path
    key: Path

    def sign_packages(self, *files: Path) -> None:
        run("rpmsign", "--addsign", "--define", "_gpg_name Test", "--define", "__gpg /usr/bin/gpg", *files, gpg=self)

    def sign_metadata(self, repository: Path) -> None:
        signature = repository / "repodata/repomd.xml.asc"
        signature.unlink(missing_ok=True)
        run("gpg", "--batch", "--armor", "--detach-sign", repository / "repodata/repomd.xml", gpg=self)


@contextmanager
def signer() -> Iterator[Signer]:
    """Its home is short: sockets lie in it. Its agent ends with the context."""
    with tempfile.TemporaryDirectory(prefix="gpg-") as directory:
        made = Signer(Path(directory), Path(directory) / "key.asc")
        options = ("--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "")
        run(
            "gpg", *options, "--quick-generate-key", "Test <test@example.invalid>", "rsa2048", "sign", "never", gpg=made
        )
        try:
            made.key.write_text(run("gpg", "--armor", "--export", gpg=made))
            yield made
        finally:
            run("gpgconf", "--kill", "all", gpg=made)


def package(
    target: Path,
    name: str,
    version: str,
    root: Path,
    *,
    requires: Sequence[str] = (),
    arch: str = "x86_64",
    script: str = "",
    epoch: str = "",
) -> Path:
    """An unsigned package of all that is below `root`, which is gone afterwards. `script` is run on installation."""
    with tempfile.TemporaryDirectory() as scratch:
        spec = Path(scratch) / "package.spec"
        spec.write_text(
            f"Name: {name}\nVersion: {version}\nRelease: {RELEASE}\n"
            + "Summary: of a test\nLicense: none\nAutoReqProv: no\n"
            + "".join(f"Requires: {requirement}\n" for requirement in requires)
            + ("BuildArch: noarch\n" if arch == "noarch" else "")
            + (f"Epoch: {epoch}\n" if epoch else "")
            + f"%description\nof a test\n%post\n{script or 'true'}\n%files\n/*\n"
        )
        macros = {
            "_topdir": scratch,
            "_rpmdir": str(target),
            "_build_name_fmt": "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
            "_binary_payload": "w1.gzdio",
            "__spec_install_post": "%{nil}",
            "debug_package": "%{nil}",
        }
        defines = [word for key, value in macros.items() for word in ("--define", f"{key} {value}")]
        run("rpmbuild", "-bb", "--quiet", *defines, "--buildroot", root, spec)
    return target / f"{name}-{version}-{RELEASE}.{arch}.rpm"


def root_with(directory: Path, files: Mapping[str, str]) -> Path:
    for path, text in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)
    return directory


def index(repository: Path) -> None:
    """Lists the packages there, as they are now."""
    shutil.rmtree(repository / "repodata", ignore_errors=True)
    run("createrepo_c", "--quiet", repository)


def run(*command: str | Path, gpg: Signer | None = None) -> str:
    environment = os.environ | {"LC_ALL": "C"} | ({"GNUPGHOME": str(gpg.home)} if gpg else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
