"""What is signed, by whom, and whether it is what it was: packages that are no others' than the vendor's get in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import rpm_repository
import rpm_source
from errors import BuildError
from rpm_bench import Bench
from rpm_repository import RELEASE, Signer
from rpm_source import Access

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("who", ["nobody", "stranger"])
def test_only_signed_packages_are_locked(bench: Bench, stranger: Signer, who: str) -> None:
    bench.add(stranger if who == "stranger" else None, "odd")
    with pytest.raises(
        BuildError, match=rf"odd-1.0-{RELEASE}.x86_64.rpm has no good signature by a key that was given"
    ):
        bench.renew("tool", "odd")
    assert not bench.lock.exists()


@pytest.mark.parametrize("who", ["nobody", "stranger"])
def test_only_signed_packages_are_built(bench: Bench, stranger: Signer, who: str) -> None:
    """Even if the lock file says so."""
    file = bench.add(stranger if who == "stranger" else None, "odd")
    bench.lock.write_text(
        f'[[package]]\nname = "odd"\nevr = "1.0-{RELEASE}"\narch = "x86_64"\nsha256 = "{rpm_source._sha256(file)}"\n'
    )
    assert "has no good signature by a key that was given" in bench.refused("odd")


def test_a_payload_that_was_tampered_with(bench: Bench, vendor: Signer) -> None:
    """The repository lists it as it is now, and its header bears the vendor's signature."""
    file = bench.add(vendor, "odd")
    file.write_bytes(file.read_bytes()[:-20] + bytes(20))
    rpm_repository.index(bench.repository)
    with pytest.raises(BuildError, match=r"odd-1.0-.* has no good signature"):
        bench.renew("odd")
    assert not bench.lock.exists()


def test_an_old_package_does_not_pass_for_a_new_one(bench: Bench) -> None:
    """The vendor signed it, years ago."""
    bench.cache.mkdir()
    passed_off = shutil.copy(
        bench.repository / f"tool-1.0-{RELEASE}.x86_64.rpm", bench.cache / f"tool-2.0-{RELEASE}.x86_64.rpm"
    )
    bench.lock.write_text(
        f'[[package]]\nname = "tool"\nevr = "2.0-{RELEASE}"\narch = "x86_64"\n'
        f'sha256 = "{rpm_source._sha256(passed_off)}"\n'
    )
    assert f"tool-2.0-{RELEASE}.x86_64.rpm is in truth tool-1.0-{RELEASE}.x86_64.rpm" in bench.refused("tool")


def test_the_users_own_rpm_settings_bring_in_no_keys(
    bench: Bench, stranger: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    shutil.copy(stranger.key, keys / "stranger.key")
    (tmp_path / ".rpmmacros").write_text(f"%_keyring fs\n%_keyringpath {keys}\n")
    bench.add(stranger, "odd")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BuildError, match="has no good signature"):
        bench.renew("odd")


def test_a_key_is_needed(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="--gpg-key"):
        bench.renew("tool", access=Access(bench.access.repositories, ()))
    (tmp_path / "key").write_text("no key\n")
    with pytest.raises(BuildError, match="is no key"):
        bench.renew("tool", access=Access(bench.access.repositories, (tmp_path / "key",)))


def test_a_package_that_changed_after_it_was_locked(bench: Bench, vendor: Signer) -> None:
    """Signed by the right key, listed by the repository, the same version: other contents all the same."""
    bench.renew("tool")
    bench.add(vendor, "tool", text="changed")
    message = bench.refused("tool")
    assert f"tool-1.0-{RELEASE}.x86_64.rpm is not the file that was locked" in message
    assert "--renew-lock" in message


@pytest.mark.slow
def test_metadata_can_be_asked_to_be_signed(bench: Bench, vendor: Signer, stranger: Signer) -> None:
    strict = Access(bench.access.repositories, bench.access.keys, signed_metadata=True)
    bench.renew("tool")
    with pytest.raises(BuildError, match="dnf failed"):
        bench.renew("tool", access=strict)
    stranger.sign_metadata(bench.repository)
    with pytest.raises(BuildError, match="GPG signature"):
        bench.renew("tool", access=strict)
    vendor.sign_metadata(bench.repository)
    bench.renew("tool", access=strict)
