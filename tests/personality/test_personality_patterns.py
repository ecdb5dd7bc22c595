"""Clients' patterns: what they match, and that none of them keeps everybody waiting."""

from __future__ import annotations

import pytest
from conftest import HttpClient
from fake_portlayer import FakePortLayer

from personality.api.patterns import expression, glob
from personality.errors import DockerError


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("busybox", "busybox", True),
        ("busybox", "busybox2", False),
        ("b*x", "busybox", True),
        ("b*", "b/x", False),
        ("*/*", "b/x", True),
        ("b?x", "b/x", False),
        ("b?x", "büx", True),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("[^a-c]x", "dx", True),
        ("a.c", "abc", False),
        ("a\\*c", "a*c", True),
        ("a\\*c", "abc", False),
        ("a+(b)|{2}$", "a+(b)|{2}$", True),
        ("", "", True),
    ],
)
def test_globs(pattern: str, text: str, matches: bool) -> None:
    assert bool(glob(pattern).fullmatch(text)) is matches


@pytest.mark.parametrize("pattern", ["[", "[a", "[b-a]", "x[]"])
def test_broken_globs(pattern: str) -> None:
    with pytest.raises(DockerError, match="invalid pattern") as caught:
        glob(pattern)
    assert caught.value.status == 400


@pytest.mark.parametrize("text", ["(", "a**", "(?=x)", "x{2000}", "(?P<", "\\8", "[a"])
def test_broken_expressions(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DockerError, match="the name: ") as caught:
        expression(text, "the name")
    assert caught.value.status == 400
    assert capfd.readouterr() == ("", "")


@pytest.mark.timeout(60)
def test_time_grows_with_the_text_alone() -> None:
    """By trying all ways, one after the other, none of these would come to an end."""
    assert not glob("*a" * 1000 + "b").fullmatch("a" * 128)
    assert not expression("(a+)+$", "it").search("a" * 128 + "!")
    assert not expression("(a|aa)+$", "it").search("a" * 128 + "!")
    assert not expression("(.*a){20}b", "it").search("a" * 128)


async def test_lists_narrowed_by_them(http: HttpClient, fake: FakePortLayer) -> None:
    fake.add_image("a" * 100 + ":latest")
    await http.post("/containers/create", {"Image": "a" * 100}, name="a" * 100)
    for path, filters in (
        ("/containers/json", {"name": ["(a+)+b$"]}),
        ("/images/json", {"reference": ["*a" * 2000 + "b"]}),
    ):
        answer = await http.get(path, all="1", filters=filters)
        assert (answer.status, answer.json()) == (200, [])
    answer = await http.get("/images/json", filters={"reference": ["*a" * 100_000]})
    assert answer.status in (200, 400, 431)
