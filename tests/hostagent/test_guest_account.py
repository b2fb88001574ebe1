"""What the variables in sockets' paths stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostagent.cidata import Account
from hostagent.guest_account import socket_variables
from hostagent.paths import InstancePaths


@pytest.mark.parametrize(
    ("account", "home"),
    [
        (Account("ada", 1000, "", None, None), "/home/ada"),
        (Account("ada", 1000, "", "/srv/ada", None), "/srv/ada"),
        (Account("root", 0, "", None, None), "/root"),
    ],
)
def test_home_is_where_the_account_has_it(account: Account, home: str) -> None:
    variables = socket_variables(InstancePaths(Path("/h/my_box.1")), account)
    assert variables.guest == {
        "Home": home, "User": account.name, "UID": str(account.uid), "Name": "my_box.1", "Hostname": "my-box-1",
    }  # fmt: skip
    assert variables.host["Dir"] == "/h/my_box.1"


def test_an_id_that_the_guest_chooses_is_no_variable() -> None:
    assert "UID" not in socket_variables(InstancePaths(Path("/h/box")), Account("ada", None, "", None, None)).guest
