"""`vch up`, `down` and `status` as programs see them, with fake parts."""

from __future__ import annotations

import json
import os
import select
import signal
from pathlib import Path
from typing import Any

import pytest
from vch_program import PATIENCE_S, Program

from portlayer import server
from portlayer.instantclone import clones
from vch import launch, part


def _status(vch: Program) -> tuple[int, dict[str, Any]]:
    done = vch.run("status", "--json")
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
def test_detached_serves_until_down(vch: Program) -> None:
    done = vch.run("up", "--detach")
    assert done.returncode == 0, done.stderr
    socket = vch.state_dir / "docker.sock"
    assert f"export DOCKER_HOST=unix://{socket}" in done.stdout
    code, facts = _status(vch)
    assert (code, facts["up"], facts["answers"], facts["docker_host"]) == (0, True, True, f"unix://{socket}")
    assert set(facts["pids"]) == {"vch", "portlayer", "personality"}

    done = vch.run("down")
    assert done.returncode == 0, done.stderr
    assert not (vch.state_dir / "portlayer.sock").exists()
    assert _status(vch)[0] == 3


@pytest.mark.slow
def test_port_layer_starts_first_and_ends_last(up: Program) -> None:
    up.run("down")
    ended = {}
    for name in ("portlayer", "personality"):
        started, end = (up.state_dir / f"{name}.log").read_text().splitlines()
        words, _, ended[name] = end.rpartition(" ")
        assert (started, words) == (f"{name} starts", f"{name} ends at")
    assert int(ended["personality"]) < int(ended["portlayer"])


@pytest.mark.slow
def test_second_up_says_so(up: Program) -> None:
    for options in ((), ("--detach",)):
        done = up.run("up", *options)
        assert done.returncode == 1
        assert "already up" in done.stderr
    assert _status(up)[0] == 0


@pytest.mark.slow
def test_two_side_by_side(up: Program, tmp_path: Path) -> None:
    other = Program(tmp_path / "other")
    assert other.run("up", "--detach").returncode == 0
    assert other.run("down").returncode == 0
    assert _status(up)[0] == 0


@pytest.mark.slow
def test_down_twice_is_no_error(vch: Program) -> None:
    done = vch.run("down")
    assert done.returncode == 0
    assert "no VCH is up" in done.stdout


@pytest.mark.slow
def test_status_shows_the_templates(up: Program) -> None:
    ready, failed, waiting = _status(up)[1]["templates"]
    numbers = {"memory_bytes": 1 << 30, "cpus": 1, "disk_bytes": 270 << 20, "resident_bytes": 120 << 20}
    counts = {"clones": 3, "waiting": 2, "uses": 9, "made_in_s": 6.25, "last_used": None, "error": ""}
    assert ready.items() >= {"id": "ab" * 32, "state": "ready", **numbers, **counts}.items()
    assert (failed["state"], failed["error"], failed["made_in_s"]) == ("failed", "no space left", None)
    assert (waiting["state"], waiting["created"]) == ("waiting", None)
    lines = up.run("status").stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("templates:"))
    assert [line.removeprefix("templates:").strip() for line in lines[first : first + 3]] == [
        "1024 MiB, 1 CPU: ready; 270 MiB on disk, 120 MiB in memory; 3 running, 2 waiting; made in 6.2 s",
        "512 MiB, 2 CPUs: failed: no space left",
        "2048 MiB, 1 CPU: waiting",
    ]


@pytest.mark.slow
def test_options_of_instant_clone_reach_the_port_layer(vch: Program) -> None:
    done = vch.run("up", "--detach", "--no-clone", "--pool", "0", "--pool-memory", "1g")
    assert done.returncode == 0, done.stderr
    record = json.loads((vch.state_dir / "run.json").read_text())
    assert " ".join(record["portlayer_arguments"]).endswith("--no-clone --pool 0 --pool-memory 1g")
    vch.run("down")


@pytest.mark.slow
def test_a_pool_has_a_limit(vch: Program) -> None:
    done = vch.run("up", "--detach", "--pool", "65")
    assert done.returncode == 2
    assert "0<=x<=64" in done.stderr


def test_sizes_are_checked_at_once(vch: Program) -> None:
    for option in ("--default-memory", "--pool-memory"):
        done = vch.run("up", "--detach", option, "lots")
        assert done.returncode == 2
        assert f"Invalid value for '{option}': 'lots' is no size" in done.stderr


@pytest.mark.slow
def test_part_that_dies_at_the_start_is_the_reason(vch: Program) -> None:
    done = vch.run("up", "--detach", portlayer="die")
    assert done.returncode == 1
    assert "portlayer ended with exit code 7 before it served" in done.stderr
    assert "no such thing as a guest image" in done.stderr
    assert not (vch.state_dir / "personality.log").exists()


@pytest.mark.slow
def test_a_state_directory_keeps_the_name(vch: Program) -> None:
    for said, name in ((["--name", "red"], "red"), ([], "red"), (["--name", "default"], "default")):
        assert vch.run("up", "--detach", *said).returncode == 0
        assert _status(vch)[1]["name"] == name
        vch.run("down")


@pytest.mark.slow
def test_reason_that_a_part_gives_comes_first(vch: Program) -> None:
    done = vch.run("up", "--detach", portlayer="refuse")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "Error: no datastore 'x'\n(portlayer ended with exit code 1 before it served; its log"
    )


@pytest.mark.slow
def test_part_that_does_not_get_ready_is_ended(vch: Program) -> None:
    done = vch.run("up", "--detach", "--ready-timeout", "1", portlayer="hang")
    assert done.returncode == 1
    assert "portlayer did not get ready in 1 s" in done.stderr


@pytest.mark.slow
def test_part_that_serves_ends_with_one_that_does_not_come_up(vch: Program) -> None:
    done = vch.run("up", "--detach", personality="die")
    assert done.returncode == 1
    assert "personality ended with exit code 7 before it served" in done.stderr
    assert "portlayer ends at" in (vch.state_dir / "portlayer.log").read_text()


@pytest.mark.slow
def test_part_that_dies_ends_the_vch_and_status_says_why(up: Program) -> None:
    _, facts = _status(up)
    waiting = os.pidfd_open(facts["pids"]["vch"])
    os.kill(facts["pids"]["personality"], signal.SIGUSR1)
    _ended(waiting)
    code, facts = _status(up)
    assert code == 3
    assert "personality ended with exit code 9" in facts["last_error"]
    assert "out of luck" in facts["last_error"]
    assert up.run("up", "--detach").returncode == 0


@pytest.mark.slow
def test_killed_supervisor_leaves_no_part(up: Program) -> None:
    pids = _status(up)[1]["pids"]
    waiting = [os.pidfd_open(pid) for pid in pids.values()]
    os.kill(pids["vch"], signal.SIGKILL)
    for descriptor in waiting:
        _ended(descriptor)
    assert _status(up)[0] == 3


@pytest.mark.slow
def test_foreground_ends_on_ctrl_c(vch: Program) -> None:
    process = vch.foreground()
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "portlayer   portlayer starts" in log
    assert "containers keep running" in log


@pytest.mark.slow
def test_foreground_fails_when_a_part_dies(vch: Program) -> None:
    process = vch.foreground()
    os.kill(_status(vch)[1]["pids"]["portlayer"], signal.SIGUSR1)
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "Error: portlayer ended with exit code 9" in log


@pytest.mark.slow
def test_forced_down_removes_the_containers(up: Program) -> None:
    (up.state_dir / "machines" / "web").touch()
    assert _status(up)[1]["containers"]["running"] == 1
    done = up.run("down", "--force")
    assert done.returncode == 0, done.stderr
    assert "removed container web" in done.stdout
    assert not list((up.state_dir / "machines").iterdir())


@pytest.mark.slow
def test_forced_down_without_a_vch_removes_them_too(up: Program) -> None:
    up.run("down")
    (up.state_dir / "machines" / "web").touch()
    assert (up.state_dir / "machines" / "web").exists()
    done = up.run("down", "--force")
    assert done.returncode == 0, done.stderr
    assert "removed container web" in done.stdout
    assert not list((up.state_dir / "machines").iterdir())


@pytest.mark.slow
def test_container_that_cannot_be_removed_keeps_the_vch_up(up: Program) -> None:
    (up.state_dir / "machines" / "stuck").touch()
    done = up.run("down", "--force")
    assert done.returncode == 1
    assert "stuck: the machine does not end" in done.stderr
    assert _status(up)[0] == 0


@pytest.mark.slow
def test_sockets_and_logs_are_closed_to_others(up: Program) -> None:
    assert up.state_dir.stat().st_mode & 0o077 == 0
    assert (up.state_dir / "portlayer.sock").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_foreign_socket_is_not_taken(up: Program, tmp_path: Path) -> None:
    other = Program(tmp_path / "other")
    done = other.run("up", "--detach", "--grpc", f"unix://{up.state_dir}/portlayer.sock")
    assert done.returncode == 2 or "another program serves there" in done.stderr
    assert "another program serves there" in done.stderr
    assert _status(up)[0] == 0


def _ended(pidfd: int) -> None:
    """Waits for a process that is no child of this one."""
    assert select.select([pidfd], [], [], PATIENCE_S)[0]
    os.close(pidfd)


def test_a_part_has_more_time_to_end_than_it_takes_at_most() -> None:
    """Else the port layer of a busy machine is killed while it ends clones, which then stay."""
    assert part._GRACE_SECONDS > server._GRACE_S + clones._CLOSE_S
    assert launch._END_SECONDS > 2 * part._GRACE_SECONDS
