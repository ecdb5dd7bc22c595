"""What can be done with a container that runs: exec, attach, top, stats, pause... All in one VM."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time

import pytest
from conftest import CALL_TIMEOUT_S, Docker, eventually

pytestmark = [pytest.mark.vm, pytest.mark.everywhere]


def test_exec(docker: Docker, box: str) -> None:
    done = docker("exec", box, "sh", "-c", "echo out; echo err >&2; exit 9", code=9)
    assert (done.out, done.err) == ("out\n", "err\n")
    assert docker("exec -i", box, "cat", input="typed").out == "typed"
    told = docker("exec -e B=2 -w /tmp -u nobody", box, "sh", "-c", "echo $B $FROM $(pwd) $(id -un)")
    assert told.out == "2 box /tmp nobody\n"
    assert docker("exec -t", box, "tty").out.startswith("/dev/pts/")
    assert "sleep 1000000" in docker("exec", box, "ps").out
    docker("exec -d", box, "touch", "/made-by-exec")
    eventually(lambda: docker("exec", box, "ls", "/made-by-exec", code=None).code == 0)


def test_exec_failures(docker: Docker, box: str) -> None:
    assert "executable file not found" in "".join((done := docker("exec", box, "nosuch", code=127)).out + done.err)
    docker("exec", box, "/etc/passwd", code=126)
    assert "No such container" in docker("exec nobody true", code=1).err
    plain, privileged = (
        int(docker(f"exec {flags} {box} grep CapEff /proc/self/status").out.split()[1], 16)
        for flags in ("", "--privileged")
    )
    assert plain & ~privileged == 0
    assert privileged > plain


def test_exec_inspect(client: object, box: str) -> None:
    api = client.api  # type: ignore[attr-defined]
    exec_id = api.exec_create(box, ["sh", "-c", "exit 3"])["Id"]
    assert api.exec_inspect(exec_id)["Running"] is False
    api.exec_start(exec_id)
    inspected = api.exec_inspect(exec_id)
    assert (inspected["ExitCode"], inspected["Running"]) == (3, False)
    assert inspected["ProcessConfig"]["arguments"] == ["-c", "exit 3"]


def test_list_and_inspect(docker: Docker, box: str) -> None:
    listed = docker("ps --filter label=role=box --format", "{{.Names}} {{.Image}} {{.State}}").out
    assert listed == "box busybox running\n"
    assert docker("ps -q --filter name=nothing").out == ""
    assert docker("ps --filter status=exited --filter name=box -q").out == ""
    inspected = json.loads(docker("inspect", box).out)[0]
    assert inspected["Config"]["Hostname"] == "boxhost"
    assert inspected["Config"]["Labels"]["role"] == "box"
    assert inspected["State"]["Running"] is True
    assert inspected["Path"] == "sleep"


def test_top_and_stats(docker: Docker, box: str) -> None:
    assert "sleep 1000000" in docker("top", box).out
    assert "sleep" in docker("top", box, "-o", "pid,comm").out
    stats = json.loads(docker("stats --no-stream --format json", box).out)
    assert stats["Name"] == "box"
    assert not stats["MemUsage"].startswith("0B")


def test_pause(docker: Docker, box: str) -> None:
    docker("pause", box)
    assert "(Paused)" in docker("ps --filter", f"name={box}").out
    assert "is paused" in docker("exec", box, "true", code=1).err
    assert "already paused" in docker("pause", box, code=1).err
    docker("unpause", box)
    docker("exec", box, "true")


def test_events(docker: Docker, box: str) -> None:
    begin = str(time.time())
    docker("exec", box, "true")
    until = str(time.time() + 0.5)
    lines = docker(f"events --since {begin} --until {until} --filter container={box} --format {{{{.Action}}}}").out
    actions = [line.partition(":")[0] for line in lines.splitlines()]
    assert actions == ["exec_create", "exec_start", "exec_die"]


def test_rename(docker: Docker, box: str) -> None:
    docker("rename", box, "other")
    assert docker("inspect -f {{.Name}} other").out == "/other\n"
    docker("rename other", box)
    assert "already in use" in docker("create --name", box, "busybox", code=1).err


def test_rm_of_what_runs(docker: Docker, box: str) -> None:
    assert "container is running" in docker("rm", box, code=1).err


def read_until(client: subprocess.Popen[bytes], text: bytes) -> None:
    """Takes in what a client shows until the text is there."""
    assert client.stdout is not None
    seen = b""
    while text not in seen:
        piece = os.read(client.stdout.fileno(), 4096)
        assert piece, seen
        seen += piece


def test_several_clients_see_the_same(docker: Docker, environment: dict[str, str]) -> None:
    """And one that detaches with its keys leaves the container alone."""
    # It says so as long as it waits: a client that has heard it hears all that comes.
    script = "while ! read -t 1 line; do echo waiting; done; echo got $line; sleep 1000"
    docker("run -dit --name shared busybox sh -c", script)
    try:
        clients = [
            subprocess.Popen(
                ["docker", "attach", "--sig-proxy=false", "--no-stdin", "shared"],
                stdout=subprocess.PIPE,
                env=environment,
                stdin=subprocess.DEVNULL,
            )
            for _ in range(2)
        ]
        for process in clients:
            read_until(process, b"waiting")
        typing = subprocess.Popen(
            ["script", "-qec", "docker attach shared", "/dev/null"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert typing.stdin is not None
        read_until(typing, b"waiting")
        typing.stdin.write(b"hello\n")
        typing.stdin.flush()
        for process in clients:
            read_until(process, b"got hello")
        typing.stdin.write(b"\x10\x11")
        typing.stdin.flush()
        screen, _ = typing.communicate(timeout=CALL_TIMEOUT_S)
        assert b"read escape sequence" in screen
        assert docker("inspect -f {{.State.Running}} shared").out == "true\n"
        for process in clients:
            process.kill()
            process.communicate()
    finally:
        docker("rm -f shared")


def test_a_client_that_vanishes_costs_nothing(docker: Docker, box: str, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        ["docker", "exec", box, "sh", "-c", "while :; do echo x; done"],
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    process.stdout.read(1 << 16)
    process.kill()
    process.communicate()
    docker("exec", box, "true")
    docker("exec", box, "pkill", "-f", "echo x", code=None)


def test_parallel_execs(docker: Docker, box: str) -> None:
    results: list[str] = []

    def run(number: int) -> None:
        results.append(docker("exec", box, "echo", str(number)).out)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [f"{number}\n" for number in range(8)]
