"""The JSON Schema knows every key that the loader admits, and no other."""

from __future__ import annotations

import json

from hostagent.config.editor_schema import json_schema, valid_keys
from hostagent.config.lima_keys import LIMA_KEYS
from hostagent.config.schema import Config


def test_it_is_json_and_new_each_time() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    schema["properties"].clear()
    assert json_schema()["properties"]


def test_only_images_are_required_and_the_rest_may_be_null() -> None:
    schema = json_schema()
    assert schema["required"] == ["images"]
    assert schema["additionalProperties"] is False
    assert {"type": "null"} in schema["properties"]["cpus"]["anyOf"]
    assert "anyOf" not in schema["properties"]["images"]


def test_keys_of_ours_and_of_lima() -> None:
    schema = json_schema()
    ours = {field.alias for field in Config.model_fields.values()}
    assert set(valid_keys(schema, ())) == ours | set(LIMA_KEYS)
    assert {"localPort", "loadDotSSHPubKeys"} <= set(valid_keys(schema, ("ssh",)))
    assert {"location", "build", "archVariant"} <= set(valid_keys(schema, ("images", 3)))
    assert {"location", "cmdline", "arch"} == set(valid_keys(schema, ("images", 0, "kernel"))) - {"digest"}
    assert set(valid_keys(schema, ("vmOpts", "vz", "rosetta"))) == {"enabled", "binfmt"}
    assert valid_keys(schema, ("env",)) == ()
    assert valid_keys(schema, ("bogus", "deeper")) == ()


def test_keys_not_acted_on_are_struck_through() -> None:
    schema = json_schema()
    assert schema["properties"]["mounts"]["deprecated"] is True
    assert "deprecated" not in schema["$defs"]["PortForward"]["properties"]["reverse"]
