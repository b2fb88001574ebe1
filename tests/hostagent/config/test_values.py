"""Single values: what each type makes of a text, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from hostagent.config.values import GIB, MIB, AbsolutePath, Digest, GuestAddress, HostAddress, Location, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * GIB),
        ("512MiB", 512 * MIB),
        ("512m", 512 * MIB),
        ("1.5 g", 3 * GIB // 2),
        ("2kb", 2048),
        ("1024", 1024),
        ("7B", 7),
        ("0.1k", 102),
        (5, 5),
    ],
)
def test_sizes_are_read_as_lima_reads_them(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "4 apples", "-1G", "1e9", "\u0661GiB", "4GiB "])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(text)


@given(st.integers(0, 10**18 - 1), st.sampled_from(["", "k", "M", "gib", "TB"]))
def test_whole_sizes_are_exact(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number << 10 * " kmgt".index((unit or " ")[0].lower())


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (HostAddress, "0::1", "::1"),
        (HostAddress, "::ffff:127.0.0.1", "127.0.0.1"),
        (GuestAddress, "any", "any"),
        (Location, "~/a.qcow2", "~/a.qcow2"),
        (Location, "file:///a", "file:///a"),
        (Digest, "sha384:" + "a" * 96, "sha384:" + "a" * 96),
    ],
)
def test_what_is_taken(kind: Any, text: str, value: str) -> None:
    assert TypeAdapter(kind).validate_python(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        (HostAddress, "any", "must be an IPv4 or IPv6 address"),
        (HostAddress, "127.1", "must be an IPv4 or IPv6 address"),
        (GuestAddress, "fe80::1%eth0", "without a zone"),
        (Location, "https://", "must be an http"),
        (Location, "relative.img", "starts with / or ~/"),
        (Location, "/a\x1b[31m", "control characters"),
        (Digest, "sha512:" + "a" * 64, "lowercase hexadecimal"),
        (AbsolutePath, "/home/{{.User}}", "template variables"),
    ],
)
def test_what_is_refused(kind: Any, text: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TypeAdapter(kind).validate_python(text)
