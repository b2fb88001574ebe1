"""Rules through the API, asked by somebody who is not our own command."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostagent.api_client import _UnixConnection
from tests.documents import problems
from tests.fakes.configured_instance import configure
from tests.fakes.served_instance import ServedInstance, served_in_thread


@pytest.fixture
def served() -> Iterator[ServedInstance]:
    with tempfile.TemporaryDirectory(prefix="ha-") as folder:
        directory = Path(folder) / "box"
        configure(directory, "")
        with served_in_thread(directory / "api.sock") as instance:
            instance.path = directory / "api.sock"  # type: ignore[attr-defined]
            yield instance


def ask(served: ServedInstance, method: str, target: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = _UnixConnection(str(served.path), 30)  # type: ignore[attr-defined]
    try:
        connection.request(method, target, body)
        with connection.getresponse() as answer:
            return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_add_list_and_remove(served: ServedInstance) -> None:
    status, change = ask(served, "POST", "/v1/forwards", b'{"guestPort": 80, "hostPort": 8080}')
    assert (status, change["rule"]["name"]) == (200, "added.1")
    assert problems(change, "RuleChange") == []
    status, listed = ask(served, "GET", "/v1/forwards")
    assert (status, problems(listed, "RuleList")) == (200, [])
    assert [rule["origin"] for rule in listed["rules"]].count("added") == 1
    assert ask(served, "DELETE", "/v1/forwards/added.1")[0] == 200
    status, error = ask(served, "DELETE", "/v1/forwards/added.1")
    assert (status, error["message"]) == (409, "there is no rule 'added.1'")


def test_a_built_in_rule_for_several_ports_is_listed_once(served: ServedInstance) -> None:
    _, listed = ask(served, "GET", "/v1/forwards")
    texts = [rule["text"] for rule in listed["rules"] if rule["origin"] == "built-in"]
    assert texts.count("DHCP is not forwarded unless a rule says so") == 1
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "JSON"),
        (b"[]", 400, "object"),
        (b"\xff", 400, "JSON"),
        (b" " * 70_000, 413, "65536"),
        (b'{"guestPort": 0}', 409, "guestPort: must be at least 1"),
        (b'{"images": []}', 409, "images: unknown key"),
    ],
)
def test_what_is_no_rule(served: ServedInstance, body: bytes, status: int, words: str) -> None:
    answered, error = ask(served, "POST", "/v1/forwards", body)
    assert (answered, problems(error, "ErrorShape")) == (status, [])
    assert words in error["message"]
    assert served.instance.applied == []


def test_reload(served: ServedInstance) -> None:
    status, answer = ask(served, "POST", "/v1/config/reload")
    assert (status, problems(answer, "ReloadAnswer")) == (200, [])
    status, error = ask(served, "POST", "/v1/config/reload?path=/nonexistent/a.yaml")
    assert (status, error["message"]) == (409, "there is no file /nonexistent/a.yaml")
