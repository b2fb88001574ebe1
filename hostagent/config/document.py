"""A composed YAML document as plain data for the schema, with the places that its mistakes need.

One walk over the tree does what the schema cannot know of: equal keys, tags, Lima's keys that we do not act on (left
out, with a warning), and nulls. As in Lima, a key without a value (`cpus:`, `cpus: null`) is a key that was not given.
The tree is bounded in depth and size by `yaml_nodes`, so the walk may recurse.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from typing import Any, Final

from hostagent.config.lima_keys import LIMA_KEYS, LimaKey
from hostagent.config.mistakes import Mistake, key_path
from hostagent.config.yaml_nodes import Mapping, Node, Place, Scalar, Sequence, scalar_value

Location = tuple[str | int, ...]
"""The way to a value: keys and list indices from the top, as pydantic's `loc`."""

NOT_GIVEN: Final = MappingABC[str, str]

_DEFAULT_WORD: Final = {("arch",), ("vmType",)}
_TEXT_ONLY: Final[Location] = ("env",)
_COLLECTION_TAGS: Final = (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
