"""Names, places and addresses: what is accepted, and where things go by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from portlayer.main import main as portlayer_program
from vch import settings
from vch.errors import ConfigurationError

TLS = settings.Tls(Path("/ca.pem"), Path("/cert.pem"), Path("/key.pem"))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "VCH_GUEST_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_state_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.default_state_dir("default") == tmp_path / ".local/state/vch/default"
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    assert settings.default_state_dir("red") == Path("/srv/state/vch/red")
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    assert settings.default_state_dir("red") == tmp_path / ".local/state/vch/red"


def test_sockets_go_to_the_runtime_directory_unless_the_state_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = settings.default_state_dir("red")
    assert settings.default_socket("red", usual, "docker.sock") == f"unix://{usual}/docker.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert settings.default_socket("red", usual, "docker.sock") == f"unix://{tmp_path}/vch/red/docker.sock"
    assert settings.default_socket("red", Path("/srv/red"), "docker.sock") == "unix:///srv/red/docker.sock"


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-x", "a" * 64])
def test_strange_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no name"):
        settings.default_state_dir(name)


@pytest.mark.parametrize(
    ("host", "tls", "words"),
    [
        ("unix://run/d.sock", None, "must be absolute"),
        ("unix:///" + "d" * 107, None, "longer than 107 bytes"),
        ("tcp://127.0.0.1:2376", None, "TCP needs"),
        ("tcp://nowhere", TLS, "neither unix"),
        ("http://127.0.0.1:2376", TLS, "neither unix"),
        ("unix:///run/g.sock", None, "an address of their own"),
    ],
)
def test_addresses_that_cannot_be_served(host: str, tls: settings.Tls | None, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        settings.check_addresses("unix:///run/g.sock", [host], tls)


def test_addresses_that_can() -> None:
    longest = "unix:///" + "d" * 106
    settings.check_addresses("unix:///run/g.sock", [longest, "tcp://0.0.0.0:2376", "tcp://[::1]:2376"], TLS)


def test_grpc_is_never_tcp() -> None:
    with pytest.raises(ConfigurationError, match="only unix"):
        settings.check_addresses("tcp://127.0.0.1:1", ["unix:///run/d.sock"], TLS)


def test_tls_is_all_or_nothing() -> None:
    assert settings.make_tls(None, None, None) is None
    with pytest.raises(ConfigurationError, match="belong together"):
        settings.make_tls(Path("ca.pem"), None, None)


def test_parts_get_their_options() -> None:
    chosen = settings.Settings(
        name="red",
        state_dir=Path("/s"),
        hosts=("unix:///d", "tcp://[::]:2376"),
        grpc="unix:///g",
        guest_image=Path("/i"),
        default_memory="1g",
        default_cpus=2,
        accelerator="tcg",
        clone=False,
        pool=0,
        pool_memory="256m",
        tls=TLS,
    )
    portlayer = " ".join(chosen.portlayer_arguments())
    assert "--state-dir /s --grpc unix:///g --guest-image /i --name red" in portlayer
    assert "--default-memory 1g --default-cpus 2 --accelerator tcg" in portlayer
    assert "--no-clone --pool 0 --pool-memory 256m" in portlayer
    personality = " ".join(chosen.personality_arguments())
    assert "--host unix:///d --host tcp://[::]:2376 --tlscacert /ca.pem" in personality
    assert portlayer in " ".join(chosen.up_arguments())
    understood = portlayer_program.make_context("portlayer", chosen.portlayer_arguments()).params
    assert (understood["no_clone"], understood["pool_size"], understood["pool_memory"]) == (True, 0, 256 << 20)


def test_what_is_not_chosen_is_left_to_the_port_layer() -> None:
    chosen = settings.Settings(
        name="red", state_dir=Path("/s"), hosts=("unix:///d",), grpc="unix:///g", guest_image=Path("/i")
    )
    understood = portlayer_program.make_context("portlayer", chosen.portlayer_arguments()).params
    assert (understood["no_clone"], understood["pool_size"], understood["pool_memory"]) == (False, None, 1 << 30)
