"""Paths of sockets: variables, and the length of sun_path."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.config.socket_paths import MAX_GUEST_PATH, check_guest_path, check_host_path, expand

VALUES = {"Dir": "/i", "Home": "/home/ada", "Hostname": "vm", "Name": "vm", "UID": "1000", "User": "{{.Home}}"}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a.sock", "/i/sock/a.sock"),
        ("a/b", "/i/sock/a/b"),
        ("/a/{{.UID}}", "/a/1000"),
        ("{{ .Home }}/{{.Name}}", "/home/ada/vm"),
        ("/{{.User}}", "/{{.Home}}"),  # a value is not looked at again
        ("./a.sock", "/i/sock/a.sock"),
        (".//a/./b/", "/i/sock/a/b"),
        ("//a/.b/..c", "/a/.b/..c"),
        ("{{.Home}}/./a", "/home/ada/a"),
    ],
)
def test_variables_are_filled_in_and_detours_left_out(text: str, path: str) -> None:
    assert expand(check_host_path(text), VALUES, 103) == path


@pytest.mark.parametrize(("home", "path"), [("/home/ada/", "/home/ada/s"), ("//home/./a", "/home/a/s"), ("/", "/s")])
def test_a_variable_brings_no_detour(home: str, path: str) -> None:
    assert expand(check_host_path("{{.Home}}/s"), {"Home": home}, 103) == path


def test_two_spellings_of_one_path_are_one_before_the_variables_are_known() -> None:
    assert check_host_path("./a//b.sock") == check_host_path("a/b.sock")
    assert check_guest_path("/run/./a.sock") == check_guest_path("/run//a.sock") == "/run/a.sock"


def test_in_the_guest_symbolic_links_decide_where_two_dots_lead() -> None:
    assert check_guest_path("/var/run/../a.sock") == "/var/run/../a.sock"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{.Hom}}/a", "did you mean {{.Home}}?"),
        ("{{.Param.x}}/a", "unknown variable"),
        ("{{Home}}/a", "without a variable"),
        ("/a}}", "without a variable"),
        ("a/../../b", "'..'"),
        ("/" + "\u00e9" * 52, "103 bytes"),
    ],
)
def test_what_is_no_path_on_the_host(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace(".", r"\.").replace("{", r"\{").replace("?", r"\?")):
        check_host_path(text)


@pytest.mark.parametrize("text", ["a", "./a", "{{.Dir}}/a", "/" + "a" * 107])
def test_what_is_no_path_in_the_guest(text: str) -> None:
    with pytest.raises(ValueError):
        check_guest_path(text)


@pytest.mark.parametrize(("text", "words"), [("{{.Name}}", "no absolute path"), ("{{.X}}", "no value")])
def test_what_is_no_path_once_the_variables_are_known(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        expand(text, VALUES, MAX_GUEST_PATH)


def test_an_id_that_the_guest_chooses_has_no_value_yet() -> None:
    with pytest.raises(ValueError, match=r"say it with user\.uid"):
        expand("/run/user/{{.UID}}/s", {}, MAX_GUEST_PATH)


@given(st.text("/{}. aH", max_size=30))
def test_a_path_or_a_sentence(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert expand(check_host_path(text), VALUES, 103).startswith("/")
