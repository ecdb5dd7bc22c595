"""Dockerfile instructions of `docker import --change`, and the images that it makes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from storage_archives import File, chunked, compress, digest, make_tar
from storage_state import State

from portlayer.errors import InvalidArgumentError
from portlayer.storage import ImageStore
from portlayer.storage.changes import apply_changes
from portlayer.v1.storage_pb2 import ImportImageOptions

ROOT = make_tar([File("./hello", b"hello")])


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ([], {}),
        (["# a comment", "", "  "], {}),
        (['CMD ["a", "b c"]'], {"Cmd": ["a", "b c"]}),
        (["cmd a  b | c"], {"Cmd": ["/bin/sh", "-c", "a  b | c"]}),
        (["CMD [not json"], {"Cmd": ["/bin/sh", "-c", "[not json"]}),
        (["CMD []"], {"Cmd": []}),
        (["CMD"], {"Cmd": []}),
        (['ENTRYPOINT ["x"]'], {"Entrypoint": ["x"]}),
        (["CMD a", 'ENTRYPOINT ["x"]'], {"Cmd": ["/bin/sh", "-c", "a"], "Entrypoint": ["x"]}),
        (["ENV A=b C='d e' F=\"g $A\""], {"Env": ["A=b", "C=d e", "F=g "]}),
        (["ENV A=b", "ENV B=$A-${A}c ${D:-x}=1", "ENV A b  c"], {"Env": ["A=b  c", "B=b-bc", "x=1"]}),
        (["ENV A=\\$x B=\\ y C='$A' D=${A:+yes} E=${A+yes}"], {"Env": ["A=$x", "B= y", "C=$A", "D=", "E="]}),
        (["ENV A=b \\", "  C=d"], {"Env": ["A=b", "C=d"]}),
        (["ENV A="], {"Env": ["A="]}),
        (
            ["EXPOSE 80 443/udp 1000-1001"],
            {"ExposedPorts": {"80/tcp": {}, "443/udp": {}, "1000/tcp": {}, "1001/tcp": {}}},
        ),
        (["LABEL a=b \"c d\"='e f'", "LABEL a=z"], {"Labels": {"a": "z", "c d": "e f"}}),
        (["ONBUILD RUN x"], {"OnBuild": ["RUN x"]}),
        (["STOPSIGNAL SIGUSR1"], {"StopSignal": "SIGUSR1"}),
        (["STOPSIGNAL 9"], {"StopSignal": "9"}),
        (["STOPSIGNAL RTMIN+3"], {"StopSignal": "RTMIN+3"}),
        (["USER 1000:100"], {"User": "1000:100"}),
        (['VOLUME ["/a b"]', "VOLUME /c /d"], {"Volumes": {"/a b": {}, "/c": {}, "/d": {}}}),
        (["WORKDIR /a/../b", "WORKDIR c"], {"WorkingDir": "/b/c"}),
        (["WORKDIR x y"], {"WorkingDir": "/x y"}),
        (["HEALTHCHECK NONE"], {"Healthcheck": {"Test": ["NONE"]}}),
        (
            ["HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=0s --retries=3 CMD curl x"],
            {
                "Healthcheck": {
                    "Interval": 90 * 10**9,
                    "Timeout": 5 * 10**8,
                    "StartPeriod": 0,
                    "Retries": 3,
                    "Test": ["CMD-SHELL", "curl x"],
                }
            },
        ),
        (['HEALTHCHECK CMD ["a"]'], {"Healthcheck": {"Test": ["CMD", "a"]}}),
    ],
)
def test_instructions(changes: list[str], config: dict[str, Any]) -> None:
    assert apply_changes({}, changes) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("RUN x", "^RUN is not a valid change command$"),
        ("foo", "^foo is not a valid change command$"),
        ("VOLUME", "^VOLUME requires at least one argument"),
        ("WORKDIR", "^WORKDIR requires exactly one argument"),
        ('CMD ["a", 1]', "arrays must be comprised of strings only"),
        ("ENV A", "ENV must have two arguments"),
        ("ENV a=b c", 'Syntax error - can\'t find = in "c". Must be of the form: name=value'),
        ("ENV =b", "ENV names can not be blank"),
        ("ENV A='b", "matching single-quote"),
        ('ENV A="b', "matching double-quote"),
        ("ENV A=${b", "missing '}'"),
        ("ENV A=${b:?must}", "b: must"),
        ("ENV A=${b%x}", "unsupported modifier"),
        ("LABEL a", "LABEL must have two arguments"),
        ("EXPOSE x", "invalid containerPort: x"),
        ("EXPOSE 0", "invalid containerPort: 0"),
        ("EXPOSE 70000", "invalid containerPort: 70000"),
        ("EXPOSE 9-8", "invalid containerPort"),
        ("EXPOSE 80/icmp", "invalid proto: icmp"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD"),
        ("ONBUILD from x", "FROM isn't allowed as an ONBUILD trigger"),
        ("STOPSIGNAL FOO", "invalid signal: FOO"),
        ("STOPSIGNAL 65", "invalid signal: 65"),
        ("USER", "USER requires exactly one argument"),
        ('VOLUME [" "]', "VOLUME specified can not be an empty string"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK FOO x", 'Unknown type "FOO" in HEALTHCHECK'),
        ("HEALTHCHECK --x=1 CMD x", "Unknown flag: x"),
        ("HEALTHCHECK --interval=5 CMD x", 'time: missing unit in duration "5"'),
        ("HEALTHCHECK --interval=5us CMD x", "cannot be less than 1ms"),
        ("HEALTHCHECK --retries=x CMD x", 'ParseInt: parsing "x": invalid syntax'),
    ],
)
def test_instructions_that_make_no_sense(change: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        apply_changes({}, [change])


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
async def test_import(store: ImageStore, state: State, compression: str) -> None:
    options = ImportImageOptions(reference="mine", comment="from a test", changes=["CMD x", "LABEL a=b"])
    image_id = await store.import_rootfs(options, chunked(compress(ROOT, compression)))
    image = store.get("mine:latest")
    assert image.id == image_id == digest(image.config_json)
    assert image.config.cmd == ("/bin/sh", "-c", "x")
    assert image.config.labels == {"a": "b"}
    assert image.config.comment == "from a test"
    assert image.diff_ids == (digest(ROOT),)
    assert image.size_bytes == 5
    assert state.disk(store, "mine").read("hello") == b"hello"
    (line,) = store.history("mine")
    assert (line.comment, line.size_bytes) == ("from a test", 5)


async def test_import_for_another_platform(store: ImageStore) -> None:
    image_id = await store.import_rootfs(ImportImageOptions(platform="linux/arm64/v8"), chunked(ROOT))
    config = json.loads(store.get(image_id).config_json)
    assert (config["architecture"], config["variant"]) == ("arm64", "v8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ImportImageOptions(platform="windows/amd64"), "operating system is not supported"),
        (ImportImageOptions(platform="x y"), "invalid platform"),
        (ImportImageOptions(reference="A"), "must be lowercase"),
        (ImportImageOptions(changes=["CMD a\0b"]), "character that no text may have"),
    ],
)
async def test_import_options_that_make_no_sense(store: ImageStore, options: ImportImageOptions, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        await store.import_rootfs(options, chunked(ROOT))
    assert store.list() == []
