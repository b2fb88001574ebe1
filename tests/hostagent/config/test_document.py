"""The walk that finds equal keys, leaves out Lima's keys and nulls, and remembers places."""

from __future__ import annotations

from hostagent.config.document import Document, unknown_key
from hostagent.config.yaml_nodes import Mapping, Place, compose


def document(text: str) -> Document:
    root = compose(text)
    assert isinstance(root, Mapping)
    return Document.of(root)


def test_nulls_and_ignored_keys_are_left_out_and_the_rest_is_kept() -> None:
    found = document(
        "cpus: ~\nplain: true\nssh: {localPort: 1, other: 2}\nportForwards:\n- {reverse: true, hostIP: }\n"
    )
    assert found.data == {"ssh": {"other": 2}, "portForwards": [{"reverse": True}]}
    assert [warning.path for warning in found.warnings] == ["plain", "ssh.localPort"]


def test_the_first_of_equal_keys_counts_at_any_depth() -> None:
    found = document("env: {A: 1, A: 2}\nvideo: {display: none, display: vnc}\n")
    assert found.data == {"env": {"A": "1"}}
    assert [(m.line, m.column, m.path) for m in found.mistakes] == [(1, 13, "env.A"), (2, 24, "video.display")]


def test_default_is_a_word_of_lima_only_where_lima_has_it() -> None:
    assert document("arch: default\nvmType: default\nos: default\n").data == {"os": "default"}


def test_places_of_keys_and_values_and_of_what_is_missing() -> None:
    found = document("a: 1\nb:\n- c:  2\n")
    assert found.place(("b", 0, "c")) == Place(3, 7)
    assert found.place(("b", 0, "c"), of_key=True) == Place(3, 3)
    assert found.place(("b", 0, "missing")) == Place(3, 3)
    assert found.place(("missing",)) == Place(1, 1)


def test_a_value_with_a_strange_tag_is_unread() -> None:
    found = document("a: !x [1]\nb: !y z\n")
    assert found.data == {}
    assert found.unread == {("a",), ("b",)}


def test_an_unknown_key_names_the_nearest_or_a_short_list() -> None:
    assert unknown_key("dsik", ("disk", "cpus")) == "unknown key; did you mean 'disk'?"
    assert unknown_key("bogus", ("disk", "arch")) == "unknown key; known here: arch, disk"
    assert "hostagent schema" in unknown_key("bogus", tuple(f"long{i}" for i in range(30)))
