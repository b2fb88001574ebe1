"""The templates that come with hostagent load without a word of complaint, on both architectures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hostagent.config.loader import ConfigError, HostDefaults, LoadedConfig, load_config
from hostagent.config.templates import template_names, template_text
from hostagent.errors import UserError

NAMES = ("default", "alma-9", "debian-12", "debian-13", "ubuntu-24.04", "ubuntu-26.04")


def loaded(name: str, arch: str = "x86_64", text: str | None = None) -> LoadedConfig:
    return load_config((text or template_text(name)).encode(), name, HostDefaults(arch, 2))


def test_a_file_without_images_is_led_to_a_template() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(b"cpus: 2\n", "c.yaml")
    (template,) = re.findall(r"copy those of (\S+)", caught.value.message)
    assert load_config(Path(template).read_bytes(), template).config.images


def test_the_names_with_the_default_first() -> None:
    assert template_names() == NAMES


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
@pytest.mark.parametrize("name", NAMES)
def test_a_template_names_a_dated_image_with_digest_then_the_newest(name: str, arch: str) -> None:
    result = loaded(name, arch)
    assert result.warnings == ()
    dated, newest, *last = result.config.usable_images()
    other = {"x86_64": "arm64|aarch64", "aarch64": "amd64|x86_64"}[arch]
    for image in (dated, newest):
        assert image.location is not None
        assert image.location.startswith("https://")
        assert not re.search(other, image.location)
    assert dated.digest is not None
    assert newest.digest is None
    builds = {"default": ["debian-12"], "debian-12": ["debian-12"], "debian-13": ["debian-13"]}
    assert [image.build for image in last] == builds.get(name, [])


def test_the_examples_in_the_default_template_are_right() -> None:
    """What a new user uncomments must work; only lines that look like YAML are."""
    text = re.sub(r"^# ((?:- |  )*[A-Za-z]+: ?.*|[A-Za-z]+:)$", r"\1", template_text("default"), flags=re.MULTILINE)
    config = loaded("default", text=text).config
    assert (config.cpus, config.memory, config.disk, config.arch) == (4, 2 << 30, 100 << 30, "x86_64")
    assert [rule.host_port_range for rule in config.port_forwards] == [
        (8080, 8080),
        (5432, 5432),
        (6000, 6999),
        (13000, 13009),
        (6379, 6379),
        (1, 65535),
    ]
    assert (config.forward_default, config.forwarding) == ("loopback", True)
    assert config.user.name == "alice"
    assert config.env == {"EDITOR": "nano"}


@pytest.mark.parametrize(
    ("name", "hint"), [("debian-11", "debian-1"), ("../default", "default"), ("\x1b[2J", "there are")]
)
def test_an_unknown_template_is_the_users_to_mend(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        template_text(name)
    assert hint in caught.value.hint
    assert caught.value.message.isprintable()
