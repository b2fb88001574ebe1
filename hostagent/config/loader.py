"""`config.yaml` to a `Config`, or every mistake in it at once, each with its place.

A file may come from anywhere, so reading it costs bounded time and memory and has two outcomes, `LoadedConfig` or
`ConfigError`. What makes the rest unreadable (no such file, not UTF-8, broken YAML) is one message; everything below
that is collected: equal keys, unknown keys with the nearest known one, and values that the schema refuses.
"""

from __future__ import annotations

import itertools
import os
import platform
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from hostagent.config.document import Document, unknown_key
from hostagent.config.editor_schema import json_schema, valid_keys
from hostagent.config.mistakes import MAX_LISTED, ConfigError, Mistake, key_path, printable
from hostagent.config.rule_review import review
from hostagent.config.schema import Config
from hostagent.config.wording import UNKNOWABLE, UNKNOWN_KEY, explained
from hostagent.config.yaml_nodes import Mapping, Scalar, YamlError, compose

__all__ = ["MAX_BYTES", "ConfigError", "HostDefaults", "LoadedConfig", "Mistake", "load_config", "read_config"]

MAX_BYTES: Final = 1 << 20
"""Size of a file; a real one has a few kilobytes."""

_ARCH_ALIASES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
_EMPTY_HINT: Final = "the least that a configuration says is `images: [{build: debian-12}]`"


@dataclass(frozen=True, slots=True)
class HostDefaults:
    """What a configuration takes from the host when it does not say it."""

    arch: str
    cpus: int

    @classmethod
    def of_this_host(cls) -> HostDefaults:
        """The host's architecture, and as many of the CPUs that this process may use as a guest gets by default."""
        machine = platform.machine().lower()
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(_ARCH_ALIASES.get(machine, machine), min(4, usable))


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration that can be used."""

    config: Config
    warnings: tuple[Mistake, ...]
    """Keys that are present and not acted on, and rules that nobody means, in the order of the file."""
    text: str
    """The file as it was read."""


def read_config(path: Path) -> LoadedConfig:
    """The configuration in the file `path`; raises `ConfigError`."""
    return load_config(_read(path), str(path))


def load_config(data: bytes, name: str, host: HostDefaults | None = None) -> LoadedConfig:
    """The configuration in `data`; raises `ConfigError`. Messages call it `name`; `host` is this host by default."""
    text = _decoded(data, name)
    try:
        root = compose(text)
    except YamlError as exc:
        raise ConfigError.of(name, [exc.mistake]) from exc
    if root is None or (isinstance(root, Scalar) and root.plain and root.text in ("", "~", "null")):
        raise ConfigError(f"{printable(name)}: is empty", _EMPTY_HINT)
    if not isinstance(root, Mapping):
        mistake = Mistake(
            root.place.line, root.place.column, "", "the file must be a mapping, with lines like `cpus: 2`"
        )
        raise ConfigError.of(name, [mistake])
    document = Document.of(root)
    config, mistakes = _validated(document, host or HostDefaults.of_this_host())
    if config is None or mistakes:
        raise ConfigError.of(name, mistakes)
    return LoadedConfig(config, tuple(sorted((*document.warnings, *_remarks(document, config)))), text)


def _read(path: Path) -> bytes:
    name = printable(str(path))
    try:
        # A FIFO or a device would block or never end; without blocking, the kind can be asked for first.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _read_regular(descriptor, name)
        finally:
            os.close(descriptor)
    except FileNotFoundError as exc:
        raise ConfigError(f"there is no file {name}", "check the path") from exc
    except PermissionError as exc:
        raise ConfigError(f"{name} cannot be read: permission denied", "check its mode with `ls -l`") from exc
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ConfigError(f"{name} cannot be read: {reason}", "check the path") from exc


def _read_regular(descriptor: int, name: str) -> bytes:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{name} is a directory", "name the YAML file in it")
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{name} is not a regular file", "put the configuration into a file and name that")
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        return file.read(MAX_BYTES + 1)


def _decoded(data: bytes, name: str) -> str:
    shown = printable(name)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{shown}: is larger than 1 MiB", "a configuration has a few kilobytes: check the path")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{shown}: is UTF-16 text", "save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        before = exc.object[: exc.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8")) + 1
        message = f"the byte 0x{exc.object[exc.start]:02x} is not UTF-8, so this is no text file"
        mistake = Mistake(line, column, "", message)
        raise ConfigError.of(name, [mistake], "check the path, or save the file as UTF-8") from exc


def _validated(document: Document, host: HostDefaults) -> tuple[Config | None, list[Mistake]]:
    data = {"arch": host.arch, "cpus": host.cpus, **document.data}
    mistakes = list(document.mistakes)
    try:
        # Python code may give fields by their attribute names, a file may not.
        return Config.model_validate(data, by_alias=True, by_name=False), mistakes
    except ValidationError as exc:
        errors: list[Any] = [
            error
            for error in exc.errors(include_url=False)
            if error["type"] != UNKNOWABLE and error["loc"] not in document.unread
        ]
    placed = sorted(((_where(document, error), error) for error in errors), key=lambda pair: pair[0])
    schema = json_schema() if any(error["type"] == UNKNOWN_KEY for error in errors) else {}
    for index, ((line, column, path), error) in enumerate(placed):
        if error["type"] != UNKNOWN_KEY:
            message = explained(error)
        else:
            near = valid_keys(schema, error["loc"][:-1]) if index < MAX_LISTED else ()
            message = unknown_key(error["loc"][-1], near)
        mistakes.append(Mistake(line, column, path, message))
    return None, mistakes


def _remarks(document: Document, config: Config) -> Iterator[Mistake]:
    for remark in itertools.islice(review(config), MAX_LISTED):
        place = document.place(remark.path, of_key=True)
        yield Mistake(place.line, place.column, key_path(remark.path), remark.message)


def _where(document: Document, error: Any) -> tuple[int, int, str]:
    path: tuple[str | int, ...] = error["loc"]
    of_key = error["type"] == UNKNOWN_KEY
    if path[-1:] == ("[key]",):
        path, of_key = path[:-1], True
    place = document.place(path, of_key=of_key)
    return place.line, place.column, key_path(path)
