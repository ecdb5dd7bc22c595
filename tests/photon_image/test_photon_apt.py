"""apt's repositories as a source of packages. Neither the machine's settings nor its lists are used."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from sources import AptSource

_CONTROL = (
    "Package: tool\nVersion: 1.0\nArchitecture: amd64\nMaintainer: T <t@example.invalid>\nDescription: of a test\n"
)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with a package in it; its list names digests of three kinds, as Ubuntu's do."""
    made, root = tmp_path / "repository", tmp_path / "root"
    state, cache = tmp_path / "state", tmp_path / "cache"
    for directory in (made, root / "DEBIAN", root / "usr/share", tmp_path / "parts", state / "lists/partial", cache):
        directory.mkdir(parents=True)
    (root / "DEBIAN/control").write_text(_CONTROL)
    (root / "usr/share/tool").write_text("1.0")
    file = made / "tool_1.0_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", root, file], check=True, stdout=subprocess.DEVNULL)
    data = file.read_bytes()
    digests = {field: hashlib.new(field.lower(), data).hexdigest() for field in ("SHA1", "SHA256", "SHA512")}
    fields = {"Filename": f"./{file.name}", "Size": len(data)} | digests
    (made / "Packages").write_text(_CONTROL + "".join(f"{field}: {value}\n" for field, value in fields.items()))
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{made} ./\n")
    (tmp_path / "status").touch()
    (tmp_path / "apt.conf").write_text(
        f'Dir::State "{state}"; Dir::State::status "{tmp_path}/status"; Dir::Cache "{cache}";\n'
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list"; Dir::Etc::sourceparts "{tmp_path}/parts";\n'
        'APT::Sandbox::User ""; APT::Architecture "amd64";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    return made


def test_from_repository_to_files(repository: Path, tmp_path: Path) -> None:
    source = AptSource(tmp_path / "packages")
    assert source.available(["tool", "nothing"]) == {"tool"}
    (package,) = resolved = source.resolve(["tool"])
    assert package.sha256 == hashlib.sha256((repository / package.file).read_bytes()).hexdigest()
    source.unpack(resolved, tmp_path / "unpacked")
    assert (tmp_path / "unpacked/usr/share/tool").read_text() == "1.0"
