"""The resolved configuration survives the way over the disk; anything else is the user's to mend."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.config.loader import HostDefaults, load_config
from hostagent.config.resolved import dump_resolved, load_resolved
from hostagent.config.templates import template_names, template_text
from hostagent.errors import UserError


@pytest.mark.parametrize("name", template_names())
def test_every_template_comes_back_as_it_was(name: str) -> None:
    config = load_config(template_text(name).encode(), name, HostDefaults("aarch64", 3)).config
    assert load_resolved(dump_resolved(config), "resolved.json") == config


def test_the_defaults_are_in_the_file() -> None:
    config = load_config(b"images: [{build: debian-12}]\nportForwards: [{}]", "c", HostDefaults("x86_64", 3)).config
    written = json.loads(dump_resolved(config))
    assert (written["memory"], written["cpus"], written["arch"]) == (2 << 30, 3, "x86_64")
    assert written["portForwards"][0]["hostPortRange"] == [1, 65535]
    assert written["ssh"] == {"loadDotSSHPubKeys": True}


@given(st.binary(max_size=100))
def test_a_damaged_file_is_a_user_error(data: bytes) -> None:
    with pytest.raises(UserError, match="is damaged"):
        load_resolved(data, "resolved.json")


def test_a_key_of_another_version_is_a_user_error() -> None:
    config = load_config(b"images: [{build: debian-12}]", "c").config
    newer = json.loads(dump_resolved(config)) | {"later": 1}
    with pytest.raises(UserError, match="another version"):
        load_resolved(json.dumps(newer), "resolved.json")
