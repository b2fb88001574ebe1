"""Bounds and defaults of the models; keys as Lima spells them; JSON there and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hostagent.config.port_forward import PortForward
from hostagent.config.schema import Config, Image, Kernel, Ssh, User
from hostagent.config.values import GIB, MIB

ADDRESSES = st.ip_addresses().map(str)
PORTS = st.integers(1, 65535)


def wrong_keys(model: Any, **keys: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(keys, by_alias=True, by_name=False)
    return [".".join(map(str, error["loc"])) for error in caught.value.errors()]


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
        ({"forwardDefault": "all"}, "forwardDefault"),
        ({"forwarding": "no"}, "forwarding"),
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
        PortForward(guest_port=1).guest_port = 2
