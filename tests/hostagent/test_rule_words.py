"""Ends of a forward as one types them."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.errors import UserError
from hostagent.rule_words import rule_request


@pytest.mark.parametrize(
    ("guest", "host", "request_"),
    [
        ("80", None, {"guestPort": 80}),
        ("80", "8080", {"guestPort": 80, "hostPort": 8080}),
        ("3000-3009", "13000-13009", {"guestPortRange": [3000, 3009], "hostPortRange": [13000, 13009]}),
        ("any:80", "0.0.0.0:80", {"guestIP": "any", "guestPort": 80, "hostIP": "0.0.0.0", "hostPort": 80}),
        ("0.0.0.0:80", None, {"guestIP": "0.0.0.0", "guestIPMustBeZero": True, "guestPort": 80}),
        ("[::1]:80", "[2001:db8::1]:81", {"guestIP": "::1", "guestPort": 80, "hostIP": "2001:db8::1", "hostPort": 81}),
        ("any", None, {"guestIP": "any"}),
        ("localhost:80", "localhost:8080", {"guestPort": 80, "hostPort": 8080}),  # both addresses, as without any
        ("Localhost:1-9", "localhost", {"guestPortRange": [1, 9]}),
        ("[::1]", None, {"guestIP": "::1"}),
        ("/run/docker.sock", "docker.sock", {"guestSocket": "/run/docker.sock", "hostSocket": "docker.sock"}),
        ("{{.Home}}/a", "/tmp/a:b", {"guestSocket": "{{.Home}}/a", "hostSocket": "/tmp/a:b"}),
        ("/run/8080/udp", None, {"guestSocket": "/run/8080/udp"}),
        ("99999", None, {"guestPort": 99999}),  # what may stand there is for the schema to say
    ],
)
def test_each_form(guest: str, host: str | None, request_: dict[str, object]) -> None:
    assert rule_request(guest, host) == request_


@pytest.mark.parametrize("text", ["", "http", ":80", "::1:80", "80-", "1-2-3", "[::1", "80 ", "123456", "docker.sock"])
def test_what_is_no_end(text: str) -> None:
    with pytest.raises(UserError, match="no end of a forward"):
        rule_request(text, None)


@pytest.mark.parametrize(
    ("text", "hint"),
    [("8080/udp", "8080 --proto udp"), ("8080:80", "80 8080"), ("1-9:11-19/tcp", "11-19 1-9 --proto tcp")],
)
def test_as_docker_writes_them(text: str, hint: str) -> None:
    with pytest.raises(UserError, match="no end of a forward") as caught:
        rule_request(text, None)
    assert caught.value.hint.endswith(f": {hint}")


def test_any_is_no_address_of_the_host() -> None:
    with pytest.raises(UserError, match="of the guest only"):
        rule_request("80", "any:8080")


@given(st.text(max_size=20))
def test_a_request_or_the_error(text: str) -> None:
    with contextlib.suppress(UserError):
        assert json.loads(json.dumps(rule_request(text, text)))
