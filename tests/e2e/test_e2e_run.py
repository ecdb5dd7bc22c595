"""`docker run` in its many forms, with the real CLI, in real VMs."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest
from conftest import CALL_TIMEOUT_S, ON_VSPHERE, Docker, eventually

pytestmark = [pytest.mark.vm, pytest.mark.everywhere, pytest.mark.usefixtures("forget")]


def test_everything_a_container_is_told_reaches_it(docker: Docker, tmp_path: Path) -> None:
    """Many options in one VM."""
    (tmp_path / "env").write_text("FROM_FILE=file\n# comment\n")
    cid = tmp_path / "cid"
    script = """
        echo host=$(hostname); echo a=$A file=$FROM_FILE; pwd; id
        touch /root-file 2>&1; touch /scratch/ok && echo tmpfs; mount | grep ' /scratch '
        cat /proc/1/comm; nproc; cat /sys/fs/cgroup/memory.max; ulimit -n"""
    done = docker(
        f"run --rm --name told --cidfile {cid} -e A=1 --env-file {tmp_path / 'env'} -w /work/dir -u 1234:56"
        " --group-add 78 --hostname myhost --tmpfs /scratch:size=1m,mode=1777 --read-only --memory 64m --cpus 2 --init"
        " --ulimit nofile=100:200 --entrypoint sh busybox -c",
        script,
    )
    lines = done.out.splitlines()
    assert "host=myhost" in lines
    assert "a=1 file=file" in lines
    assert "/work/dir" in lines
    assert any(line.startswith("uid=1234 gid=56") and "78" in line for line in lines)
    assert any("Read-only file system" in line for line in lines)
    assert "tmpfs" in lines
    assert any("size=1024k" in line for line in lines)
    assert any("tini" in line or "init" in line for line in lines)
    assert "2" in lines
    assert "100" in lines
    assert len(cid.read_text()) == 64
    assert docker("ps -aq --filter name=told").out == ""


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["nosuch"], 127, "executable file not found in $PATH"),
        (["/bin/nosuch"], 127, "no such file or directory"),
        (["/etc/passwd"], 126, "permission denied"),
    ],
)
def test_programs_that_cannot_be_launched(docker: Docker, command: list[str], code: int, message: str) -> None:
    done = docker("run --rm busybox", *command, code=code)
    assert message in done.err


def test_exit_codes_and_streams(docker: Docker) -> None:
    done = docker("run --rm busybox sh -c", "echo out; echo err >&2; exit 42", code=42)
    assert (done.out, done.err) == ("out\n", "err\n")
    assert docker("run --rm busybox sh -c", "sh -c 'kill -9 $$'; exit $?", code=137).out == ""


def test_what_is_no_container(docker: Docker) -> None:
    assert "No such image" in docker("run --pull never nosuchimage true", code=125).err
    assert "unable to find user nobody-here" in docker("run --rm -u nobody-here busybox true", code=125).err
    assert "no host has more than" in docker("run --rm --memory 1024t busybox true", code=125).err
    assert "network" in docker("run --rm -p 80:80 busybox true", code=125).err.lower()
    assert "network" in docker("run --rm --network mine busybox true", code=125).err.lower()
    assert docker("ps -a -q --filter ancestor=nosuchimage").out == ""


def test_stdin_ends_the_container(docker: Docker) -> None:
    assert docker("run --rm -i busybox cat", input="one\ntwo\n").out == "one\ntwo\n"
    digest = hashlib.sha1(b"x" * 300_000).hexdigest()
    assert docker("run --rm -i busybox sha1sum", input="x" * 300_000).out.startswith(digest)


def test_a_terminal(docker: Docker, environment: dict[str, str]) -> None:
    master, slave = pty.openpty()
    os.set_blocking(master, True)
    subprocess.run(["stty", "rows", "30", "cols", "91"], stdin=slave, check=True)
    command = ["docker", "run", "--rm", "-it", "busybox", "sh"]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    screen = b""

    def until(text: bytes) -> None:
        nonlocal screen
        deadline = time.monotonic() + CALL_TIMEOUT_S
        while text not in screen:
            assert time.monotonic() < deadline, screen
            if select.select([master], [], [], 1)[0]:
                screen += os.read(master, 4096)

    until(b"# ")
    os.write(master, b"stty size; tty; echo $TERM; exit 5\n")
    until(b"30 91")
    until(b"/dev/pts/0")
    assert process.wait(CALL_TIMEOUT_S) == 5
    os.close(master)


def test_detached_logs_and_wait(docker: Docker) -> None:
    docker(
        "run -d --name lines busybox sh -c",
        "for i in 1 2 3; do echo $i; done; echo e >&2; sleep 1; exit 6",
    )
    followed = docker("logs -f lines")
    assert (followed.out, followed.err) == ("1\n2\n3\n", "e\n")
    assert docker("wait lines").out == "6\n"
    assert docker("logs --tail 2 lines").out == "3\n"
    stamped = docker("logs -t lines").out.splitlines()
    assert stamped[0].endswith("Z 1")
    assert docker("logs --since 1h lines").out == "1\n2\n3\n"
    assert docker("logs --until 1h lines").out == ""
    state = json.loads(docker("inspect lines").out)[0]["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 6)
    # Start it again, attached; then see what was kept.
    assert docker("start -a lines", code=6).out == "1\n2\n3\n"
    assert docker("logs lines").out == "1\n2\n3\n1\n2\n3\n"


def test_the_writable_layer_survives_a_restart_of_the_container(docker: Docker) -> None:
    docker("run -d --name keeps busybox sh -c", "date >>/kept; wc -l </kept; sleep 1000")
    eventually(lambda: docker("logs keeps").out == "1\n")
    docker("restart -t 0 keeps")
    eventually(lambda: docker("logs keeps").out == "1\n2\n")
    assert json.loads(docker("inspect keeps").out)[0]["State"]["Running"] is True


def test_much_output_is_byte_exact(docker: Docker) -> None:
    lines = 1 << (16 if ON_VSPHERE else 20)  # each byte through an emulated serial port takes its time
    done = docker("run --rm busybox sh -c", f"yes 0123456789abcde | head -c {16 * lines}")
    assert len(done.out) == 16 * lines
    assert done.out == "0123456789abcde\n" * lines


def test_stop_signals_and_timeouts(docker: Docker) -> None:
    script = "trap 'echo usr; exit 7' USR1; echo ready; while :; do sleep 0.1; done"

    def ready(times: int) -> None:
        eventually(lambda: docker("logs polite").out.count("ready") == times)

    docker("run -d --name polite --stop-signal USR1 --stop-timeout 30 busybox sh -c", script)
    ready(1)
    docker("stop polite")
    assert docker("inspect -f {{.State.ExitCode}} polite").out == "7\n"
    docker("start polite")
    ready(2)
    docker("kill -s USR1 polite")
    assert docker("wait polite").out == "7\n"
    docker("start polite")
    docker("kill polite")
    assert docker("inspect -f {{.State.ExitCode}} polite").out == "137\n"


def test_out_of_memory_is_reported(docker: Docker) -> None:
    docker("run --name hungry --memory 32m busybox sh -c", "tail /dev/zero", code=137)
    assert docker("inspect -f {{.State.OOMKilled}} hungry").out == "true\n"
