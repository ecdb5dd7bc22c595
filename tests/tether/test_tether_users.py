"""Users and groups by the container's own files, honest or hostile."""

from __future__ import annotations

from pathlib import Path

import pytest

from tether import users
from tether.launch import LaunchError

PASSWD = "root:x:0:0:root:/root:/bin/sh\nbroken line\nweb:x:33:33:web:/srv:/bin/sh\nhuge:x:99999999999:0::/:\n"
GROUP = "root:x:0:\nwww:x:33:\nlogs:x:50:other,web\nbad:x:y:web\n"


@pytest.fixture(autouse=True)
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "passwd").write_text(PASSWD)
    (tmp_path / "group").write_text(GROUP)
    original = users._records
    monkeypatch.setattr(users, "_records", lambda path, fields: original(path.replace("/etc", str(tmp_path)), fields))
    return tmp_path


@pytest.mark.parametrize(
    ("user", "extra", "expected"),
    [
        ("", [], users.Identity(0, 0, (0,), "/root")),
        ("web", [], users.Identity(33, 33, (33, 50), "/srv")),
        ("33", [], users.Identity(33, 33, (33, 50), "/srv")),
        ("web:logs", [], users.Identity(33, 50, (50,), "/srv")),
        ("1234", [], users.Identity(1234, 0, (0,), "/")),
        ("1234:77", ["logs", "5"], users.Identity(1234, 77, (77, 50, 5), "/")),
    ],
)
def test_resolve(user: str, extra: list[str], expected: users.Identity) -> None:
    assert users.resolve(user, extra) == expected


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("nobody-here", "unable to find user nobody-here: no matching entries in passwd file"),
        ("web:nogroup", "unable to find group nogroup: no matching entries in group file"),
        ("huge", "unable to find user huge"),
        ("99999999999", "unable to find user 99999999999"),
        ("-1", "unable to find user -1"),
    ],
)
def test_unknown_names(user: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        users.resolve(user, [])


def test_no_files_at_all(etc: Path) -> None:
    (etc / "passwd").unlink()
    (etc / "group").unlink()
    assert users.resolve("7:8", []) == users.Identity(7, 8, (8,), "/")
    assert users.names() == {}


def test_passwd_that_is_a_device_is_not_read(etc: Path) -> None:
    (etc / "passwd").unlink()
    (etc / "passwd").symlink_to("/dev/zero")
    assert users.names() == {}
