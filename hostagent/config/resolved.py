"""The resolved configuration on disk: what `up` decided, for the host agent to read without YAML.

Both ends are ours and may be of different versions, so a file that does not fit is the user's to mend by a new `up`.
"""

from __future__ import annotations

from pydantic import ValidationError

from hostagent.config.schema import Config
from hostagent.errors import UserError


def dump_resolved(config: Config) -> str:
    """`config` with all its defaults as indented JSON, keys as in `config.yaml`."""
    return config.model_dump_json(indent=2) + "\n"


def load_resolved(data: bytes | str, name: str) -> Config:
    """The configuration that `dump_resolved` wrote; `UserError`, naming the file `name`, when it is anything else."""
    try:
        return Config.model_validate_json(data, by_alias=True, by_name=False)
    except ValidationError as exc:
        raise UserError(
            f"{name} is damaged, or was written by another version of hostagent",
            "run `hostagent up` with the configuration file again",
        ) from exc
