"""Bounds and defaults of the models; keys as Lima spells them; JSON there and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hostagent.config.schema import ALL_PORTS, Config, Image, Kernel, PortForward, Ssh, User
from hostagent.config.values import GIB, MIB

ADDRESSES = st.ip_addresses().map(str)
PORTS = st.integers(1, 65535)


def rule(**keys: Any) -> PortForward:
    return PortForward.model_validate(keys, by_alias=True, by_name=False)


def wrong_keys(model: Any, **keys: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(keys, by_alias=True, by_name=False)
    return [".".join(map(str, error["loc"])) for error in caught.value.errors()]


@pytest.mark.parametrize(
    ("keys", "guest_ip", "must_be_zero"),
    [
        ({}, "127.0.0.1", False),
        ({"guestIPMustBeZero": True}, "0.0.0.0", True),
        ({"guestIPMustBeZero": False}, "127.0.0.1", False),
        ({"guestIP": "0.0.0.0"}, "0.0.0.0", True),
        ({"guestIP": "0.0.0.0", "guestIPMustBeZero": False}, "0.0.0.0", False),
        ({"guestIP": "::"}, "::", False),
        ({"guestIP": "0::01"}, "::1", False),
        ({"guestIP": "::ffff:10.0.0.1"}, "10.0.0.1", False),
        ({"guestIP": "any"}, "any", False),
    ],
)
def test_the_guest_address_and_its_defaults(keys: dict[str, Any], guest_ip: str, must_be_zero: bool) -> None:
    forward = rule(**keys)
    assert (forward.guest_ip, forward.guest_ip_must_be_zero) == (guest_ip, must_be_zero)
    assert (forward.host_ip, forward.proto) == ("127.0.0.1", "any")


@pytest.mark.parametrize(
    ("keys", "guest", "host"),
    [
        ({}, ALL_PORTS, ALL_PORTS),
        ({"guestPort": 80}, (80, 80), (80, 80)),
        ({"guestPort": 80, "hostPort": 8080}, (80, 80), (8080, 8080)),
        ({"guestPort": 80, "hostPortRange": [8080, 8080]}, (80, 80), (8080, 8080)),
        ({"guestPortRange": [1, 9]}, (1, 9), (1, 9)),
        ({"guestPortRange": [1, 9], "hostPortRange": [101, 109]}, (1, 9), (101, 109)),
        ({"guestPort": 22, "guestPortRange": [22, 22]}, (22, 22), (22, 22)),
        ({"guestSocket": "/run/a", "hostPort": 80}, ALL_PORTS, (80, 80)),
        ({"guestPort": 80, "hostSocket": "a"}, (80, 80), (80, 80)),
    ],
)
def test_ports_and_their_defaults(keys: dict[str, Any], guest: tuple[int, int], host: tuple[int, int]) -> None:
    assert (rule(**keys).guest_port_range, rule(**keys).host_port_range) == (guest, host)


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [
        ({"guestPort": 0}, "guestPort"),
        ({"hostPort": 65536, "guestPort": 1}, "hostPort"),
        ({"guestPort": True}, "guestPort"),
        ({"hostPort": 80}, "hostPort"),
        ({"guestPortRange": [2, 1]}, "guestPortRange"),
        ({"guestPortRange": [1, 2], "hostPortRange": [1, 3]}, "hostPortRange"),
        ({"guestPortRange": [1, 2], "hostPort": 1}, "hostPort"),
        ({"guestPort": 1, "hostPortRange": [1, 2]}, "hostPortRange"),
        ({"guestPort": 1, "guestPortRange": [2, 2]}, "guestPortRange"),
        ({"guestPort": 1, "guestSocket": "/a"}, "guestSocket"),
        ({"guestSocket": "a"}, "guestSocket"),
        ({"guestSocket": "/a", "hostPortRange": [1, 2]}, "hostPortRange"),
        ({"guestPort": 1, "hostPort": 1, "hostSocket": "/a"}, "hostSocket"),
        ({"hostSocket": "/a"}, "hostSocket"),
        ({"reverse": True, "guestPort": 1}, "reverse"),
        ({"guestIP": "127.0.0.1", "guestIPMustBeZero": True}, "guestIPMustBeZero"),
        ({"guestIP": "any", "guestIPMustBeZero": True}, "guestIPMustBeZero"),
        ({"hostIP": "any"}, "hostIP"),
        ({"proto": "sctp"}, "proto"),
        ({"guest_port": 80}, "guest_port"),
    ],
)
def test_a_rule_that_cannot_be_meant(keys: dict[str, Any], wrong: str) -> None:
    assert wrong_keys(PortForward, **keys)[0] == wrong


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [
        ({}, ""),
        ({"build": "debian-11"}, "build"),
        ({"build": "debian-12", "location": "/a"}, "build"),
        ({"build": "debian-12", "digest": "sha256:" + "0" * 64}, "build"),
        ({"location": "a.img"}, "location"),
        ({"location": "ftp://a/b"}, "location"),
        ({"location": "https://a/b\n"}, "location"),
        ({"location": "/" + "a" * 5000}, "location"),
        ({"location": "/a", "digest": "sha256:abc"}, "digest"),
        ({"location": "/a", "digest": "sha256:" + "A" * 64}, "digest"),
        ({"location": "/a", "initrd": {"location": "/b"}}, "initrd"),
        ({"location": "/a", "kernel": {"cmdline": "quiet"}}, "kernel.location"),
    ],
)
def test_an_image_that_cannot_be_meant(keys: dict[str, Any], wrong: str) -> None:
    assert wrong_keys(Image, **keys) == [wrong]


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [
        ({"cpus": 0}, "cpus"),
        ({"cpus": 257}, "cpus"),
        ({"cpus": 2.0}, "cpus"),
        ({"memory": "255MiB"}, "memory"),
        ({"memory": True}, "memory"),
        ({"disk": "1023MiB"}, "disk"),
        ({"vmType": "vz"}, "vmType"),
        ({"os": "Windows"}, "os"),
        ({"images": []}, "images"),
        ({"images": [{"build": "debian-12", "arch": "aarch64"}]}, "images"),
        ({"env": {"A-B": "x"}}, "env.A-B.[key]"),
        ({"env": {"A": "x\ny"}}, "env.A"),
        ({"user": {"name": "Bob"}}, "user.name"),
        ({"user": {"uid": 0}}, "user.uid"),
        ({"user": {"home": "home"}}, "user.home"),
        ({"user": {"shell": "/bin/sh:x"}}, "user.shell"),
        ({"user": {"comment": "a:b"}}, "user.comment"),
    ],
)
def test_values_out_of_bounds(keys: dict[str, Any], wrong: str) -> None:
    base = {"arch": "x86_64", "cpus": 2, "images": [{"build": "debian-12"}]}
    assert wrong_keys(Config, **{**base, **keys}) == [wrong]


def _forward(draw: Any) -> PortForward:
    first, length = draw(PORTS), draw(st.integers(0, 100))
    last = min(first + length, 65535)
    host = draw(st.integers(1, 65535 - (last - first)))
    return PortForward(
        guest_ip=draw(ADDRESSES | st.just("any")),
        guest_port_range=(first, last),
        host_ip=draw(ADDRESSES),
        host_port_range=(host, host + last - first),
        proto=draw(st.sampled_from(["tcp", "udp", "any"])),
        ignore=draw(st.booleans()),
    )


@st.composite
def configs(draw: Any) -> Config:
    kernel = st.none() | st.just(Kernel(location="~/vmlinuz", cmdline="quiet"))
    return Config(
        arch=draw(st.sampled_from(["x86_64", "aarch64"])),
        cpus=draw(st.integers(1, 256)),
        memory=draw(st.integers(256 * MIB, 64 * GIB)),
        images=(Image(location="https://host/image", kernel=draw(kernel)), Image(build="debian-13")),
        user=User(uid=draw(st.none() | st.integers(1, 60000)), comment=draw(st.none() | st.just("Zoë"))),
        ssh=Ssh(loadDotSSHPubKeys=draw(st.booleans())),
        env=draw(st.dictionaries(st.from_regex(r"[A-Z_]{1,9}", fullmatch=True), st.text("abc é\"'$", max_size=9))),
        port_forwards=tuple(_forward(draw) for _ in range(draw(st.integers(0, 3)))),
    )


@given(configs())
def test_json_round_trip(config: Config) -> None:
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert Config.model_validate_json(config.model_dump_json(), by_alias=True, by_name=False) == config


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValidationError):
        rule(guestPort=1).guest_port = 2
