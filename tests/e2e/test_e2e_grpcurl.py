"""The gRPC API with grpcurl, which has no files of ours: what it knows, reflection told it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from conftest import CALL_TIMEOUT_S, Done, Vch

pytestmark = pytest.mark.vm

Grpcurl = Callable[..., Done]


@pytest.fixture
def grpcurl(loaded: Vch) -> Grpcurl:
    """Runs it against the VCH; `messages` are sent as the call's requests."""
    program = shutil.which("grpcurl")
    if program is None:
        pytest.skip("no grpcurl on this machine: `make test` brings it")

    def run(*words: str, messages: tuple[dict[str, Any], ...] = (), code: int = 0) -> Done:
        done = subprocess.run(
            [program, "-plaintext", *(("-d", "@") if messages else ()), loaded.grpc, *words],
            input="\n".join(map(json.dumps, messages)),
            capture_output=True,
            text=True,
            timeout=CALL_TIMEOUT_S,
            check=False,
        )
        assert (done.returncode == 0) is (code == 0), done
        return Done(done.returncode, done.stdout, done.stderr)

    return run


def answers(text: str) -> list[dict[str, Any]]:
    """The JSON values that stand one after the other in a text."""
    decoder, found = json.JSONDecoder(), []
    text = text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].strip()
    return found


def test_grpcurl_finds_its_way(grpcurl: Grpcurl) -> None:
    listed = grpcurl("list").out.split()
    assert {f"portlayer.v1.{name}Service" for name in ("Execution", "Interaction", "Storage", "Events")} <= set(listed)
    assert "SERVING" in grpcurl("grpc.health.v1.Health/Check").out
    assert "CreateContainerRequest" in grpcurl("describe", "portlayer.v1.ExecutionService.CreateContainer").out


def test_grpcurl_drives_the_whole_life(grpcurl: Grpcurl) -> None:
    execution, interaction = "portlayer.v1.ExecutionService", "portlayer.v1.InteractionService"
    process = {"cmd": ["sh", "-c", "cat; exit 3"], "open_stdin": True, "stdin_once": True}
    create = {"request_id": "grpcurl-1", "name": "by-grpcurl", "spec": {"image": "busybox", "process": process}}
    (made,) = answers(grpcurl(f"{execution}/CreateContainer", messages=(create,)).out)
    named = {"container": "by-grpcurl"}
    (started,) = answers(grpcurl(f"{execution}/StartContainer", messages=(named,)).out)
    assert started["container"]["state"]["status"] == "CONTAINER_STATUS_RUNNING"
    attached = answers(
        grpcurl(
            f"{interaction}/Attach",
            messages=(
                {"open": {**named, "stdin": True, "stdout": True, "stream": True}},
                {"stdin": base64.b64encode(b"typed\n").decode()},
                {"close_stdin": True},
            ),
        ).out
    )
    assert base64.b64decode(attached[-1]["output"]["data"]) == b"typed\n"
    waited = answers(
        grpcurl(f"{execution}/WaitContainer", messages=({**named, "condition": "CONDITION_NOT_RUNNING"},)).out
    )
    assert waited[-1]["exit_code"] == 3
    logs = answers(grpcurl(f"{interaction}/ReadLogs", messages=({**named, "stdout": True},)).out)
    assert b"".join(base64.b64decode(one["data"]) for one in logs) == b"typed\n"
    grpcurl(f"{execution}/RemoveContainer", messages=({"container": made["container"]["id"]},))
    refused = grpcurl(f"{execution}/GetContainer", messages=(named,), code=1)
    assert "NotFound" in refused.err
    assert "ErrorInfo" in refused.err
