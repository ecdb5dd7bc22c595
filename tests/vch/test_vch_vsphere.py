"""`vch` for a VCH on vSphere: its options, what it remembers, and the password, which is seen nowhere."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import termios
import time
from pathlib import Path

import click
import pytest
from vch_program import PATIENCE_S, Program

from portlayer.drivers.vsphere.settings import PoolLimits, Shares, from_options
from portlayer.main import main as portlayer_program
from vch import vsphere_options
from vch.cli import main as vch_program
from vch.errors import ConfigurationError
from vch.vsphere_options import Vsphere

SECRET = "s3cr3t of tests"
TARGET = "vch@vsphere.local@vc.example.org"
EVERYTHING = [
    *("--target", TARGET, "--thumbprint", "AB:CD", "--compute-resource", "C1", "--datastore", "d s"),
    *("--image-datastore", "ds2", "--bridge-network", "vch", "--container-network", "web:VLAN 7"),
    *("--container-network", "lab:VLAN 8", "--cpu-limit", "8GHz", "--cpu-reservation", "1GHz"),
    *("--memory-limit", "64g", "--memory-reservation", "8g", "--shares", "high", "--affinity-group"),
    *("--vm-name-template", "c-{id}", "--serial-listen", "0.0.0.0:3000", "--serial-address", "vch.example.org"),
]


def remembered(vch: Program) -> dict[str, object]:
    return json.loads((vch.state_dir / "run.json").read_text())["vsphere"]


def told(vch: Program) -> str:
    """What the port layer was told as the password; forgotten with that."""
    file = vch.state_dir / "password-told"
    words = file.read_text()
    file.unlink()
    return words


@pytest.fixture
def password(vch: Program, tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    return file


def test_every_option_reaches_the_port_layer(tmp_path: Path) -> None:
    for name in ("c.pem", "k.pem"):
        (tmp_path / name).touch()
    tls = ["--serial-tls-cert", str(tmp_path / "c.pem"), "--serial-tls-key", str(tmp_path / "k.pem")]
    said = vch_program.commands["up"].make_context("up", [*EVERYTHING, *tls]).params
    chosen = vsphere_options.chosen(dict(said), None)
    assert chosen is not None
    arguments = ["--state-dir", "/s", "--grpc", "unix:///g", "--guest-image", "/i", *chosen.arguments()]
    understood = portlayer_program.make_context("portlayer", arguments).params
    settings = from_options(understood, SECRET)
    assert settings == from_options(said, SECRET)
    assert settings.limits == PoolLimits(8000, 1000, 64 << 30, 8 << 30, Shares("high"))
    assert settings.container_networks == (("web", "VLAN 7"), ("lab", "VLAN 8"))
    assert settings.affinity_group
    unset = {name for name in vsphere_options.NAMES if not said[name]}
    assert unset == {"ca", "password_file"}  # all others are tried here


def test_the_same_options_everywhere() -> None:
    up = {param.name for param in vch_program.commands["up"].params}
    portlayer = {param.name for param in portlayer_program.params}
    assert set(vsphere_options.NAMES) <= up
    assert set(vsphere_options.NAMES) - {"password_file"} <= portlayer


def test_password_goes_by_a_pipe_and_is_seen_nowhere(vch: Program, password: Path) -> None:
    done = vch.run("up", "--detach", *EVERYTHING, "--password-file", str(password))
    assert done.returncode == 0, done.stderr
    assert told(vch) == SECRET
    everywhere = [done.stdout, done.stderr]
    everywhere += [file.read_text() for file in vch.state_dir.iterdir() if file.is_file()]
    for process in vch.processes():
        everywhere += [" ".join(process.cmdline()), str(process.environ())]
    assert len(everywhere) > 8
    assert not [text for text in everywhere if SECRET in text]
    assert json.loads(vch.run("status", "--json").stdout)["target"] == TARGET
    vch.run("down")


@pytest.mark.slow
def test_password_from_the_environment_is_not_passed_on(vch: Program) -> None:
    vch.environment["VCH_PASSWORD"] = SECRET
    assert vch.run("up", "--detach", *EVERYTHING).returncode == 0
    assert told(vch) == SECRET
    assert len(vch.processes()) == 3
    assert not [process for process in vch.processes() if SECRET in str(process.environ())]
    vch.run("down")


def test_who_is_up_already_is_asked_for_no_password(vch: Program, password: Path) -> None:
    assert vch.run("up", "--detach", *EVERYTHING, "--password-file", str(password)).returncode == 0
    for how in ([], ["--detach"]):
        done = vch.run("up", *EVERYTHING, *how)
        assert done.returncode == 1
        assert "is already up" in done.stderr
    vch.run("down")


def test_without_a_password_or_a_terminal(vch: Program, password: Path) -> None:
    done = vch.run("up", "--detach", *EVERYTHING)
    assert done.returncode == 2
    assert f"no password for {TARGET}: give --password-file, set VCH_PASSWORD" in done.stderr
    password.write_text("")
    done = vch.run("up", "--detach", *EVERYTHING, "--password-file", str(password))
    assert done.returncode == 2
    assert "is empty" in done.stderr


@pytest.mark.slow
def test_password_is_asked_for_on_a_terminal(vch: Program) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        vch.arguments("up", "--detach", *EVERYTHING),
        env=vch.environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,  # else it asks on the terminal that the tests are run on, where there is one
    )
    os.close(theirs)
    seen = b""
    while b"Password of" not in seen:
        seen += os.read(ours, 1000)
    while termios.tcgetattr(ours)[3] & termios.ECHO:
        time.sleep(0.01)
    os.write(ours, f"{SECRET}\n".encode())
    assert process.wait(PATIENCE_S) == 0
    assert told(vch) == SECRET
    seen += os.read(ours, 10_000)
    os.close(ours)
    assert SECRET.encode() not in seen
    vch.run("down")


@pytest.mark.slow
def test_what_was_said_holds_until_it_is_said_anew(vch: Program, password: Path) -> None:
    def up(*options: str) -> dict[str, object]:
        done = vch.run("up", "--detach", *options)
        assert done.returncode == 0, done.stderr
        assert told(vch) == SECRET
        vch.run("down")
        return remembered(vch)

    first = up(*EVERYTHING, "--password-file", str(password))
    assert up() == first
    changed = up("--memory-limit", "32g", "--container-network", "new:VLAN 9", "--no-affinity-group")
    difference = {"memory_limit": "32g", "container_network": ["new:VLAN 9"], "affinity_group": False}
    assert changed == {**first, **difference}
    anew = up("--target", "root@esx", "--datastore", "local", "--password-file", str(password))
    assert anew == {"target": "root@esx", "datastore": "local", "password_file": str(password)}


@pytest.mark.slow
def test_forced_down_of_a_stopped_one_needs_the_password_again(vch: Program, password: Path) -> None:
    vch.environment["VCH_PASSWORD"] = SECRET
    assert vch.run("up", "--detach", *EVERYTHING).returncode == 0
    (vch.state_dir / "machines" / "web").touch()
    vch.run("down")
    del vch.environment["VCH_PASSWORD"]
    assert "no password" in vch.run("down", "--force").stderr
    password.write_text("another")
    done = vch.run("down", "--force", "--password-file", str(password))
    assert done.returncode == 0, done.stderr
    assert told(vch) == "another"
    assert "removed container web" in done.stdout
    assert "not removed: the VM folder red: 0 containers" in done.stdout
    # Machines are in vCenter: none here says nothing about them.
    assert "no password" in vch.run("down", "--force").stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--datastore", "ds"], "--datastore is of use with --target only"),
        ([*EVERYTHING, "--accelerator", "kvm"], "--accelerator is for QEMU"),
        ([*EVERYTHING, "--channel", "vsock"], "--channel is for QEMU"),
        ([*EVERYTHING, "--password-file", "/nowhere"], "does not exist"),
        # Said at once, before a password is asked for, and not by way of the port layer's log.
        (["--target", "vcenter"], "Error: --target 'vcenter': write it as USER@HOST"),
        ([*EVERYTHING, "--cpu-limit", "much"], "Error: --cpu-limit: 'much' is no amount of CPU"),
    ],
)
def test_what_makes_no_sense(vch: Program, options: list[str], words: str) -> None:
    done = vch.run("up", "--detach", *options)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "a@b", "--password-fd", "0", "--channel", "virtio"], "--accelerator and --channel are for QEMU"),
        (["--target", "a@b"], "--target needs --password-fd"),
        (["--shares", "high"], "--shares is of use with --target only"),
        (["--target", "vcenter", "--password-fd", "0"], "USER@HOST"),
    ],
)
def test_the_port_layer_refuses_nonsense(options: list[str], words: str) -> None:
    read, write = os.pipe()
    os.write(write, b"secret")
    os.close(write)
    options = [str(read) if option == "0" else option for option in options]
    arguments = ["--state-dir", "/s", "--grpc", "unix:///g", "--guest-image", "/i", *options]
    with pytest.raises(click.UsageError, match=words):
        portlayer_program.main(arguments, standalone_mode=False)
    if str(read) not in options:
        os.close(read)


@pytest.mark.slow
def test_a_configuration_file_says_the_same(vch: Program, password: Path, tmp_path: Path) -> None:
    file = tmp_path / "vch.toml"
    file.write_text(
        f"""
        target = "{TARGET}"
        password-file = "password"          # beside this file
        container-network = ["web:VLAN 7", "lab:VLAN 8"]
        memory-limit = "64g"
        affinity-group = true
        no-clone = true
        pool = 3
        default-memory = "512m"
        """
    )
    done = vch.run("up", "--detach", "--config", str(file), "--memory-limit", "1g", "--no-affinity-group")
    assert done.returncode == 0, done.stderr
    assert told(vch) == SECRET
    vch.run("down")
    arguments = " ".join(json.loads((vch.state_dir / "run.json").read_text())["portlayer_arguments"])
    assert "--default-memory 512m --no-clone --pool 3 --target" in arguments
    assert remembered(vch) == {
        "target": TARGET,
        "password_file": str(password),
        "container_network": ["web:VLAN 7", "lab:VLAN 8"],
        "memory_limit": "1g",
        "affinity_group": False,
    }


def test_one_file_is_for_up_and_doctor(vch: Program, tmp_path: Path) -> None:
    file = tmp_path / "vch.toml"
    file.write_text("pool = 3\ndefault-memory = '512m'")
    assert "python" in vch.run("doctor", "--config", str(file), "--guest-image", "/nowhere").stdout
    file.write_text("pol = 3")
    done = vch.run("doctor", "--config", str(file))
    assert done.returncode == 2
    assert "'pol' is no option" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("datastor = 'x'", "'datastor' is no option; did you mean 'datastore'?"),
        ("compute_resource = 'x'", "did you mean 'compute-resource'?"),
        ("zzz = 1", "'zzz' is no option; there are: "),
        ("password = 'x'", "'password' is no option; did you mean 'password-file'?"),
        ("password-fd = 3", "'password-fd' is no option"),
        ("no-clone = 'yes'", "no-clone is true or false"),
        ("datastore = ['a']", "datastore is a text or a number"),
        ("[vsphere]\ndatastore = 'a'", "'vsphere' is no option"),
        ("pool = 'many'", "Invalid value for '--pool'"),
        ("datastore = ", "Invalid value"),
    ],
)
def test_mistakes_in_a_configuration_file(vch: Program, tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "vch.toml"
    file.write_text(text)
    done = vch.run("up", "--detach", "--config", str(file))
    assert done.returncode == 2
    assert words in done.stderr


def test_record_of_a_version_before(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no target"):
        Vsphere.from_json({"datastore": "x"})
    known = Vsphere.from_json({"target": "a@b", "of a later version": 1})
    assert known.arguments() == ["--target", "a@b"]
    with pytest.raises(ConfigurationError):
        vsphere_options.chosen(dict.fromkeys(vsphere_options.NAMES) | {"shares": "low"}, None)
