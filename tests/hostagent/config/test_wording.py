"""Every kind of error that the models can make has words of ours; pydantic's own would be the exception."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hostagent.config.schema import Config
from hostagent.config.wording import UNKNOWABLE, explained

BASE: dict[str, Any] = {"arch": "x86_64", "cpus": 2, "images": [{"build": "debian-12"}]}


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"cpus": "two"}, "must be a whole number, not 'two'"),
        ({"cpus": 2.5}, "must be a whole number, not 2.5"),
        ({"cpus": True}, "must be a whole number, not true"),
        ({"cpus": 0}, "must be at least 1, not 0"),
        ({"memory": "1MiB"}, "must be at least 256MiB, not 1MiB"),
        ({"memory": 1000}, "must be at least 256MiB, not 1000"),
        ({"memory": "lots"}, "must be a size such as 4GiB or 512MiB, not 'lots'"),
        ({"disk": "65TiB"}, "must be at most 65536GiB, not 66560GiB"),
        ({"images": {"build": "debian-12"}}, "must be a list"),
        ({"images": "debian-12"}, "must be a list, not 'debian-12'"),
        ({"images": ["debian-12"]}, "must be a mapping of keys to values, not 'debian-12'"),
        ({"images": [None]}, "must be a mapping of keys to values, not empty"),
        ({"images": []}, "must have at least one entry"),
        ({"images": [{"build": "debian-12"}] * 101}, "must not have more than 100 entries"),
        ({"images": [{"location": ""}]}, "must not be empty"),
        ({"user": {"comment": "x" * 257}}, "must not be longer than 256 characters"),
        ({"user": {"name": 7}}, "must be text; put it in quotes, not 7"),
        ({"env": []}, "must be a mapping of keys to values"),
        ({"ssh": {"loadDotSSHPubKeys": "on"}}, "must be true or false; in YAML 1.2 'on' is a word"),
        ({"ssh": {"loadDotSSHPubKeys": 1}}, "must be true or false, not 1"),
        ({"portForwards": [{"guestPortRange": [1]}]}, "is missing: a range is two ports, [first, last]"),
        ({"portForwards": [{"guestPortRange": [1, 2, 3]}]}, "a range is two ports, [first, last]"),
        ({"portForwards": [{"proto": "icmp"}]}, "must be 'tcp', 'udp' or 'any', not 'icmp'"),
        ({"vmType": "vz"}, "must be 'qemu', not 'vz'"),
        ({"vmType": "QEMU"}, "must be 'qemu', not 'QEMU'; did you mean 'qemu'?"),
        (
            {"images": [{"build": "debian13"}]},
            "must be 'debian-12' or 'debian-13', not 'debian13'; did you mean 'debian-13'?",
        ),
    ],
)
def test_the_sentence(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({**BASE, **keys}, by_alias=True, by_name=False)
    errors = [error for error in caught.value.errors() if error["type"] != UNKNOWABLE]
    assert [explained(error) for error in errors] == [sentence]
