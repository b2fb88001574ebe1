"""What the configuration's pydantic models have in common: frozen, strict, closed, with keys in Lima's spelling."""

from __future__ import annotations

import re
from typing import Final

from pydantic import AliasGenerator, BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

_ACRONYMS: Final = {"Ip": "IP", "Ssh": "SSH"}


def _alias(name: str) -> str:
    """Lima's spelling of a key: camelCase, with acronyms in capitals except at the start."""
    camel = to_camel(name)
    for word, acronym in _ACRONYMS.items():
        camel = re.sub(rf"(?<=[a-z]){word}(?=[A-Z]|$)", acronym, camel)
    return camel


class Model(BaseModel):
    """Frozen, strict and closed. Python code may name fields by attribute; the loader admits only the aliases."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=AliasGenerator(alias=_alias),
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
    )
