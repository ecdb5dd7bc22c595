"""RPM repositories as a source of packages: what is taken from them, and when they cannot give it."""

from __future__ import annotations

import argparse
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import rpm_source
from errors import BuildError
from rpm_bench import Bench
from rpm_repository import RELEASE, Signer
from rpm_source import Access, LockedSource

import build


def test_from_repository_to_files(bench: Bench, vendor: Signer) -> None:
    bench.add(vendor, "data", arch="noarch")
    bench.renew("tool", "data")
    unpacked = bench.unpack("tool", "data")
    assert (unpacked / "usr/share/tool").read_text() == "1.0"
    assert (unpacked / "usr/share/data").read_text() == "1.0"


@pytest.mark.slow
def test_the_newest_is_locked_and_stays_what_is_built(bench: Bench, vendor: Signer) -> None:
    bench.add(vendor, "tool", "1.10")
    bench.add(vendor, "tool", "1.9")
    bench.renew("tool")
    bench.add(vendor, "tool", "2.0")
    assert (bench.unpack("tool") / "usr/share/tool").read_text() == "1.10"
    bench.renew("tool")
    assert (bench.unpack("tool") / "usr/share/tool").read_text() == "2.0"


def test_the_newest_counts_whatever_its_architecture(bench: Bench, vendor: Signer) -> None:
    bench.add(vendor, "moved", "1.0", arch="noarch")
    bench.add(vendor, "moved", "2.0")
    bench.renew("moved")
    assert (bench.unpack("moved") / "usr/share/moved").read_text() == "2.0"


@pytest.mark.slow
def test_several_repositories_are_one(bench: Bench, vendor: Signer) -> None:
    updates = Bench(bench.directory / "updates", vendor)
    updates.add(vendor, "tool", "1.1")
    updates.add(vendor, "later")
    both = Access((*bench.access.repositories, *updates.access.repositories), bench.access.keys)
    bench.renew("tool", "later", access=both)
    unpacked = bench.unpack("tool", "later", access=both)
    assert (unpacked / "usr/share/tool").read_text() == "1.1"
    assert (unpacked / "usr/share/later").exists()


@pytest.mark.slow
def test_a_version_can_be_asked_for(bench: Bench, vendor: Signer) -> None:
    bench.add(vendor, "python3", "3.11.9")
    bench.add(vendor, "python3", "3.12.1")
    with rpm_source.opened(bench.access, bench.cache) as repository:
        names = ["python3=3.11.*", "python3=3.12.*", "python3=3.13.*", "nothing"]
        assert repository.available(names) == {"python3=3.11.*", "python3=3.12.*"}
        assert [package.version for package in repository.resolve(["python3=3.11.*"])] == [f"3.11.9-{RELEASE}"]
    bench.renew("python3=3.11.*")
    with rpm_source.opened(bench.access, bench.cache) as repository:
        assert LockedSource(bench.lock, repository).available(names) == {"python3=3.11.*"}


@pytest.mark.slow
def test_dependencies_by_pattern(bench: Bench, vendor: Signer) -> None:
    bench.add(vendor, "glibc", requires="glibc-libs filesystem")
    bench.add(vendor, "glibc-libs")
    with rpm_source.opened(bench.access, bench.cache) as repository:
        assert set(repository.dependencies("glibc", "glibc(-libs)?")) == {"glibc", "glibc-libs"}
        assert repository.dependencies("tool", "glibc.*") == []


def test_scripts_of_packages_are_not_run(bench: Bench, vendor: Signer) -> None:
    bench.add(vendor, "scripted", script=f"touch {bench.directory}/ran")
    bench.renew("scripted")
    bench.unpack("scripted")
    assert not (bench.directory / "ran").exists()


def test_what_is_cached_needs_no_repository(bench: Bench) -> None:
    bench.renew("tool")
    bench.unpack("tool")
    shutil.rmtree(bench.repository)
    shutil.rmtree(bench.directory / "unpacked")
    nowhere = Access((), bench.access.keys)
    assert (bench.unpack("tool", access=nowhere) / "usr/share/tool").exists()


@pytest.mark.slow
def test_a_damaged_download_is_made_again(bench: Bench) -> None:
    bench.renew("tool")
    bench.unpack("tool")
    cached = bench.cache / f"tool-1.0-{RELEASE}.x86_64.rpm"
    cached.write_bytes(cached.read_bytes()[:-1])
    bench.unpack("tool")
    shutil.rmtree(bench.repository)
    cached.write_bytes(b"")
    with pytest.raises(BuildError, match="dnf failed"):
        bench.unpack("tool")


def test_packages_with_an_epoch(bench: Bench, vendor: Signer) -> None:
    bench.add(vendor, "late", "1.0", epoch="2")
    bench.add(vendor, "plain", "1.0", epoch="0")
    bench.renew("late", "plain")
    assert f'evr = "2:1.0-{RELEASE}"' in bench.lock.read_text()
    assert (bench.unpack("late", "plain") / "usr/share/late").exists()


def test_a_package_that_is_gone(bench: Bench, vendor: Signer) -> None:
    bench.renew("tool")
    (bench.repository / f"tool-1.0-{RELEASE}.x86_64.rpm").unlink()
    bench.add(vendor, "tool", "1.1")
    assert f"the repository has no tool-1.0-{RELEASE}.x86_64.rpm" in bench.refused("tool")


def test_a_package_that_never_was(bench: Bench) -> None:
    with pytest.raises(BuildError, match=r"packages not found: nothing\n.*update repository"):
        bench.renew("tool", "nothing")
    bench.renew("tool")
    assert "the lock file lacks nothing" in bench.refused("tool", "nothing")


@pytest.mark.slow
def test_half_downloaded_repositories(bench: Bench) -> None:
    bench.renew("tool")
    file = bench.repository / f"tool-1.0-{RELEASE}.x86_64.rpm"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert "incorrect checksum" in bench.refused("tool")
    file.unlink()
    assert "dnf failed" in bench.refused("tool")
    file.write_bytes(whole)
    primary = next(bench.repository.glob("repodata/*-primary.xml*"))
    primary.write_bytes(primary.read_bytes()[:-10])
    assert "is the repository complete" in bench.refused("tool")
    shutil.rmtree(bench.repository / "repodata")
    assert "is the repository complete" in bench.refused("tool")


@pytest.fixture
def served(bench: Bench) -> Iterator[Access]:
    """The repository over HTTP."""
    handler = partial(QuietHandler, directory=str(bench.repository))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Access((f"http://127.0.0.1:{server.server_port}",), bench.access.keys)
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves as a proxy too: for whatever host."""

    def translate_path(self, path: str) -> str:
        return super().translate_path(urlsplit(path).path)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_over_http(bench: Bench, served: Access) -> None:
    bench.renew("tool", access=served)
    assert (bench.unpack("tool", access=served) / "usr/share/tool").read_text() == "1.0"


def test_by_the_proxy_that_the_environment_names(bench: Bench, served: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", served.repositories[0])
    mirror = Access(("http://mirror.example.invalid",), served.keys)
    bench.renew("tool", access=mirror)
    assert (bench.unpack("tool", access=mirror) / "usr/share/tool").exists()


@pytest.mark.slow
def test_half_downloaded_over_http(bench: Bench, served: Access) -> None:
    bench.renew("tool", access=served)
    file = bench.repository / f"tool-1.0-{RELEASE}.x86_64.rpm"
    file.write_bytes(file.read_bytes()[:-100])
    assert "dnf failed" in bench.refused("tool", access=served)
    file.unlink()
    assert "Cannot download" in bench.refused("tool", access=served)
    assert not list(bench.cache.glob("*.rpm"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "tool"', 'name = "../tool"'),
        ('arch = "x86_64"', 'arch = "i686"'),
        ("sha256 = ", "sha1 = "),
        ('evr = "', 'evr = "/'),
        ("[[package]]", "[package]"),
        ("[[package]]", "package ="),
    ],
)
def test_lock_files_are_checked(bench: Bench, old: str, new: str) -> None:
    bench.renew("tool")
    bench.lock.write_text(bench.lock.read_text().replace(old, new))
    assert "is no lock file" in bench.refused("tool")


def test_lock_files_name_each_package_once(bench: Bench) -> None:
    bench.renew("tool")
    bench.lock.write_text(2 * bench.lock.read_text())
    assert "names a package twice" in bench.refused("tool")


def test_without_a_lock_file(bench: Bench) -> None:
    assert "--renew-lock" in bench.refused("tool")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--lock FILE"),
        ("--lock {0}/lock", "make it with --renew-lock"),
        ("--lock {0}/lock --renew-lock", "--repository URL"),
        ("--lock {0}/lock --renew-lock --gpg-key {0}/key --repository file://{0}/none", "dnf failed"),
    ],
)
def test_what_the_command_line_lacks_is_named(
    tmp_path: Path, arguments: str, message: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VCH_PHOTON_REPOSITORY", raising=False)
    command = f"build.py --output {tmp_path}/image --source photon {arguments.format(tmp_path)}"
    monkeypatch.setattr("sys.argv", command.split())
    assert build.main() == 1
    assert message in caplog.text
    assert not (tmp_path / "image").exists()


def test_options_of_photon_are_not_taken_for_debians(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", f"build.py --output {tmp_path}/image --kernel linux-esx --lock lock".split())
    assert build.main() == 1
    assert "--kernel, --lock: nothing of Debian's\n  did you mean --source photon?" in caplog.text


def test_the_environment_says_where(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the declared packages are looked for there, and those that are missing named."""
    monkeypatch.setenv("VCH_PHOTON_REPOSITORY", bench.access.repositories[0])
    options = argparse.Namespace(
        source="photon", repository=None, gpg_key=[], signed_metadata=False, kernel="", lock=bench.lock, renew_lock=True
    )
    with (
        pytest.raises(BuildError, match="not found: linux-esx or linux, glibc, zlib"),
        build.source_options.source_of(options, build._DECLARED, bench.cache),
    ):
        pytest.fail("there is no such image")
