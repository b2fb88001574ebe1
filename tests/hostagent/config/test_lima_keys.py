"""Every key of Lima that we do not act on is warned about once, by name, wherever it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from hostagent.config.lima_keys import LIMA_KEYS, LimaKey
from hostagent.config.loader import ConfigError, HostDefaults, load_config

BASE: dict[str, Any] = {"images": [{"location": "/image.qcow2"}]}
HOST = HostDefaults("x86_64", 2)
NEIGHBOURS: dict[str, dict[str, Any]] = {
    "kernel": {"location": "/k"},
    "initrd": {"location": "/i"},
}


def named(keys: Mapping[str, LimaKey] = LIMA_KEYS) -> Iterator[tuple[LimaKey | str, ...]]:
    """The chain of names and keys down to each key that a warning names."""
    for name, key in keys.items():
        if key.group:
            yield from ((name, key, *below) for below in named(key.members))
        else:
            yield name, key


CHAINS = list(named())


def build(chain: tuple[Any, ...]) -> Any:
    """A value that has the chain's last key in it and passes the schema."""
    if not chain:
        return "x"
    name, key, *below = chain
    value: Any = build(tuple(below)) if below else "x"
    if key.listed and below:
        value = [{"location": "/image.qcow2", **value}] if name == "images" else [value]
    if name in ("kernel", "initrd"):
        return {"kernel": {"location": "/k"}, name: {**NEIGHBOURS[name], **value}}
    return {**(NEIGHBOURS.get(name, {}) if not below else {}), name: value}


def path_of(chain: tuple[Any, ...]) -> str:
    steps: list[str] = []
    for name, key in zip(chain[::2], chain[1::2], strict=True):
        steps += [name, "0"] if key.listed and key.group else [name]
    return ".".join(steps)


def warnings(config: Mapping[str, Any]) -> list[str]:
    text = json.dumps({**BASE, **config}).encode()  # JSON is YAML
    return [warning.path for warning in load_config(text, "c.yaml", HOST).warnings]


@pytest.mark.parametrize("chain", CHAINS, ids=path_of)
def test_each_key_warns_once(chain: tuple[Any, ...]) -> None:
    assert warnings(build(chain)) == [path_of(chain)]


def test_the_list_is_that_of_lima() -> None:
    paths = {path_of(chain) for chain in CHAINS}
    assert {
        "ssh.forwardAgent",
        "containerd.user",
        "mounts",
        "vmOpts.vz.rosetta.enabled",
    } <= paths
    assert len(paths) > 55


def test_null_is_not_given() -> None:
    assert (
        warnings({"mounts": None, "ssh": {"forwardAgent": None}, "containerd": None, "firmware": {"images": None}})
        == []
    )


def test_a_value_of_the_wrong_shape_warns_all_the_same() -> None:
    assert warnings({"containerd": 5, "mounts": {"location": "/"}, "video": {}}) == ["containerd", "mounts", "video"]


def test_misspelt_keys_below_ignored_ones_are_mistakes() -> None:
    with pytest.raises(ConfigError) as caught:
        warnings({"mounts": [{"9p": {"msiz": 1}}], "hostResolver": {"hosts": {"a.b": "c"}, "enable": True}})
    assert [mistake.path for mistake in caught.value.mistakes] == ["mounts.0.9p.msiz", "hostResolver.enable"]
