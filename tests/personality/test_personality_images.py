"""Images, as the API describes them and as docker-py uses them."""

from __future__ import annotations

import asyncio

import docker
import docker.errors
import grpc
import openapi
import pytest
from conftest import HttpClient
from fake_portlayer import FakePortLayer
from fake_state import PATIENCE_S


async def test_list(http: HttpClient, fake: FakePortLayer) -> None:
    old = fake.add_image(
        "busybox:latest", "registry.example.org:5000/box:1", created_s=1_000, config={"Labels": {"a": "1"}}
    )
    new = fake.add_image(created_s=2_000)
    answer = await http.get("/images/json")
    openapi.validate("/images/json", "GET", answer.status, answer.json())
    assert [image["Id"] for image in answer.json()] == [new, old]
    assert answer.json()[1]["Labels"] == {"a": "1"}
    assert answer.json()[1]["Created"] == 1_000
    assert "VirtualSize" not in answer.json()[0]


async def test_list_for_old_clients(http: HttpClient, fake: FakePortLayer) -> None:
    fake.add_image()
    [image] = (await http.get("/v1.24/images/json")).json()
    assert image["VirtualSize"] == image["Size"]
    assert image["RepoTags"] == ["<none>:<none>"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"dangling": ["true"]}, ["dangling"]),
        ({"dangling": {"false": True}}, ["old", "new"]),
        ({"label": ["a"]}, ["old", "new"]),
        ({"label": ["a=1"]}, ["old"]),
        ({"label": ["a", "b"]}, []),
        ({"reference": ["busybox"]}, ["old"]),
        ({"reference": ["busy*:lat*"]}, ["old"]),
        ({"reference": ["*"]}, ["old"]),
        ({"reference": ["*/*/n?w:[0-9]"]}, ["new"]),
        ({"reference": ["new", "old"]}, []),
        ({"before": ["busybox"]}, ["dangling"]),
        ({"since": ["busybox:latest"]}, ["new"]),
        ({"until": ["150"]}, ["dangling"]),
        ({"until": ["1970-01-01T00:03:00Z"]}, ["dangling"]),
        ({"until": ["1h"]}, ["dangling", "old", "new"]),
    ],
)
async def test_list_filters(
    http: HttpClient, fake: FakePortLayer, filters: dict[str, object], expected: list[str]
) -> None:
    names = {
        fake.add_image(created_s=100): "dangling",
        fake.add_image("busybox:latest", created_s=200, config={"Labels": {"a": "1"}}): "old",
        fake.add_image("example.org/team/new:7", created_s=300, config={"Labels": {"a": "2"}}): "new",
    }
    answer = await http.get("/images/json", filters=filters)
    assert sorted(names[image["Id"]] for image in answer.json()) == sorted(expected)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"colour": ["red"]}, "invalid filter 'colour'"),
        ({"dangling": ["perhaps"]}, "invalid filter 'dangling="),
        ({"until": ["tomorrow"]}, 'invalid value "tomorrow" for "until"'),
        ({"reference": ["[a"]}, "invalid pattern"),
        (["dangling"], "invalid filter: "),
    ],
)
async def test_broken_filters(http: HttpClient, fake: FakePortLayer, filters: object, message: str) -> None:
    fake.add_image("busybox:latest")
    answer = await http.get("/images/json", filters=filters)
    assert answer.status == 400
    assert answer.json()["message"].startswith(message)


async def test_inspect(http: HttpClient, fake: FakePortLayer) -> None:
    config = {
        "Cmd": ["sh"],
        "Env": ["A=b"],
        "ExposedPorts": {"80/tcp": {}},
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1_000_000},
        "Labels": {"a": "b"},
        "StopSignal": "SIGINT",
        "Volumes": None,
        "User": "nobody",
    }
    image = fake.add_image("busybox:latest", config=config)
    answer = await http.get("/images/busybox/json")
    openapi.validate("/images/{name}/json", "GET", answer.status, answer.json())
    body = answer.json()
    assert body["Id"] == image
    assert body["Created"] == "2023-11-14T22:13:20.000000005Z"
    assert body["RootFS"] == {"Type": "layers", "Layers": ["sha256:" + "d" * 64]}
    assert body["Config"] == {key: value for key, value in config.items() if value is not None} | {"WorkingDir": ""}


async def test_inspect_by_names_with_slashes(http: HttpClient, fake: FakePortLayer) -> None:
    fake.add_image("example.org:5000/team/box:1")
    assert (await http.get("/images/example.org:5000/team/box:1/json")).status == 200
    assert (await http.get("/images/example.org%3A5000%2Fteam%2Fbox:1/json")).status == 200


async def test_no_such_image(http: HttpClient) -> None:
    for path in ("/images/x/json", "/images/x/history", "/images/x/get"):
        answer = await http.get(path)
        assert (answer.status, answer.json()) == (404, {"message": "No such image: x"})


async def test_history(http: HttpClient, fake: FakePortLayer) -> None:
    fake.add_image("busybox:latest")
    answer = await http.get("/images/busybox/history")
    openapi.validate("/images/{name}/history", "GET", answer.status, answer.json())
    assert [entry["Id"][:6] for entry in answer.json()] == ["sha256", "<missi"]


@pytest.mark.parametrize(
    ("repo", "tag", "target"),
    [
        ("box", "", "box"),
        ("box", "1", "box:1"),
        ("box:old", "1", "box:1"),
        ("host:5000/box", "1", "host:5000/box:1"),
        ("host:5000/box:old", "1", "host:5000/box:1"),
    ],
)
async def test_tag(http: HttpClient, fake: FakePortLayer, repo: str, tag: str, target: str) -> None:
    fake.add_image("busybox:latest")
    answer = await http.post("/images/busybox/tag", repo=repo, tag=tag)
    assert (answer.status, answer.body) == (201, b"")
    assert fake.request("TagImage").target == target


async def test_tag_without_a_name(http: HttpClient) -> None:
    assert (await http.post("/images/busybox/tag")).status == 400


async def test_remove(http: HttpClient, fake: FakePortLayer) -> None:
    image = fake.add_image("busybox:latest")
    answer = await http.delete("/images/busybox:latest", force=1)
    openapi.validate("/images/{name}", "DELETE", answer.status, answer.json())
    assert answer.json() == [{"Untagged": "busybox:latest"}, {"Deleted": image}]
    assert fake.request("RemoveImage").force


async def test_remove_conflict(http: HttpClient, fake: FakePortLayer) -> None:
    fake.fail("RemoveImage", grpc.StatusCode.FAILED_PRECONDITION, "conflict: a container uses it")
    answer = await http.delete("/images/busybox")
    openapi.validate("/images/{name}", "DELETE", answer.status, answer.json())
    assert answer.status == 409


async def test_prune(http: HttpClient, fake: FakePortLayer) -> None:
    image = fake.add_image()
    kept = fake.add_image("busybox:latest")
    answer = await http.post("/images/prune", filters={"until": ["10m"], "label": ["a"], "label!": ["b=c"]})
    openapi.validate("/images/prune", "POST", answer.status, answer.json())
    assert answer.json() == {"ImagesDeleted": [{"Deleted": image}], "SpaceReclaimed": 100}
    request = fake.request("PruneImages")
    assert (request.all, list(request.labels), list(request.labels_not)) == (False, ["a"], ["b=c"])
    assert request.created_before_unix_ns > 1_700_000_000 * 10**9
    answer = await http.post("/images/prune", filters={"dangling": {"false": True}})
    assert answer.json()["ImagesDeleted"] == [{"Deleted": kept}]


async def test_load(http: HttpClient, fake: FakePortLayer) -> None:
    data = bytes(range(256)) * 20_000
    answer = await http.request("POST", "/images/load", data=data, headers={"Content-Type": "application/x-tar"})
    assert fake.uploads["LoadImages"] == data
    assert answer.lines()[0] == {"status": "reading the archive"}
    assert answer.lines()[1] == {"stream": "Loaded image: loaded:latest\n"}
    assert answer.lines()[2]["stream"].startswith("Loaded image ID: sha256:")
    assert "status" not in (await http.request("POST", "/images/load", query={"quiet": 1}, data=b"x")).lines()[0]


async def test_load_of_a_broken_archive(http: HttpClient) -> None:
    answer = await http.request("POST", "/images/load", query={"quiet": 1}, data=b"broken")
    assert (answer.status, answer.json()) == (400, {"message": "the archive is broken"})
    answer = await http.request("POST", "/images/load", data=b"broken")
    message = "the archive is broken"
    assert answer.lines()[-1] == {"errorDetail": {"message": message}, "error": message}


async def test_load_whose_client_goes(http: HttpClient, fake: FakePortLayer) -> None:
    fake.blocked.add("LoadImages, read")
    async with http.raw() as (_, writer):
        writer.write(b"POST /images/load HTTP/1.1\r\nHost: d\r\nContent-Length: 1000\r\n\r\nabc")
        await fake.until_called("LoadImages")
    await fake.until_cancelled("LoadImages")


async def test_load_whose_body_is_broken(http: HttpClient, fake: FakePortLayer) -> None:
    fake.blocked.add("LoadImages, read")
    async with asyncio.timeout(PATIENCE_S), http.raw() as (reader, writer):
        writer.write(b"POST /images/load?quiet=1 HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await fake.until_called("LoadImages")
        writer.write(b"zz")
        writer.write_eof()
        response = await reader.read()
    assert response.startswith(b"HTTP/1.1 400 ")
    assert b"body is broken" in response
    await fake.until_cancelled("LoadImages")


async def test_load_that_the_port_layer_refuses_early(http: HttpClient, fake: FakePortLayer) -> None:
    fake.fail("LoadImages", grpc.StatusCode.RESOURCE_EXHAUSTED, "no space left")
    answer = await http.request("POST", "/images/load", data=bytes(8 << 20))
    assert (answer.status, answer.json()) == (500, {"message": "no space left"})


async def test_import(http: HttpClient, fake: FakePortLayer) -> None:
    query = {
        "fromSrc": "-",
        "repo": "box",
        "tag": "2",
        "message": "hi",
        "changes": ["CMD a", "ENV b=c"],
        "platform": "linux",
    }
    answer = await http.request("POST", "/images/create", query=query, data=b"tar" * 700_000)
    assert answer.status == 200
    [line] = answer.lines()
    assert line["status"] in fake.images
    options = fake.request("ImportImage")
    assert (options.reference, options.comment, list(options.changes)) == ("box:2", "hi", ["CMD a", "ENV b=c"])
    assert fake.uploads["ImportImage"] == b"tar" * 700_000


async def test_import_errors(http: HttpClient) -> None:
    answer = await http.request("POST", "/images/create", query={"fromSrc": "-"}, data=b"broken")
    assert (answer.status, answer.json()) == (400, {"message": "the archive is broken"})
    answer = await http.request("POST", "/images/create", query={"fromSrc": "http://x"})
    assert answer.status == 501


async def test_pull(http: HttpClient) -> None:
    answer = await http.post("/images/create", fromImage="busybox", tag="latest")
    assert answer.status == 501
    assert "docker load an archive instead" in answer.json()["message"]


async def test_save(http: HttpClient, fake: FakePortLayer) -> None:
    fake.add_image("busybox:latest")
    fake.add_image("team/box:1")
    fake.archive = bytes(range(256)) * 10_000
    answer = await http.get("/images/team/box:1/get")
    assert answer.body == fake.archive
    assert answer.headers["content-type"] == "application/x-tar"
    assert (await http.get("/images/get", names=["busybox", "team/box:1"])).body == fake.archive
    assert list(fake.request("SaveImages").names) == ["busybox", "team/box:1"]
    assert (await http.get("/images/get")).status == 400


async def test_docker_py(docker_client: docker.DockerClient, fake: FakePortLayer) -> None:
    def use() -> None:
        [loaded, unnamed] = docker_client.images.load(b"an archive")
        assert loaded.tags == ["loaded:latest"]
        assert loaded.tag("again", "1")
        assert docker_client.images.get("again:1").id == loaded.id
        assert {image.id for image in docker_client.images.list()} == {loaded.id, unnamed.id}
        assert b"".join(loaded.save()) == fake.archive
        docker_client.images.remove("again:1")
        with pytest.raises(docker.errors.ImageNotFound):
            docker_client.images.get("again:1")
        with pytest.raises(docker.errors.APIError, match="pulling images is not served yet"):
            docker_client.images.pull("busybox")
        imported = docker_client.api.import_image_from_data(b"tar", repository="imported")
        assert "sha256:" in imported

    await asyncio.to_thread(use)
