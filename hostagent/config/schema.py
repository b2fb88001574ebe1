"""The configuration as pydantic models: what a `config.yaml` may say, with bounds and defaults.

Keys are those of Lima where the idea is the same (camelCase in YAML and JSON, snake_case as attributes), so that a
Lima file runs. The module is pure: what depends on the machine (`arch`, `cpus`) is required here and filled in by
`hostagent.config.loader`, and what depends on the user's account is left at `None` for `up` to fill in.

Rules that span several keys are checked in the validator of the *later* key, with the earlier ones at hand, and not in
one validator of the whole model: pydantic runs a model's own validator only when all of its fields are right, which
would hide mistakes, and its error would name the entry instead of the key.

`model_dump_json` and `model_validate_json` round-trip: a dump holds every default, so it can be read on its own.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AliasGenerator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from hostagent.config.values import ANY_ADDRESS as ANY_ADDRESS  # part of what a rule can say
from hostagent.config.values import (
    GIB,
    AbsolutePath,
    Comment,
    Digest,
    DiskSize,
    GuestAddress,
    HostAddress,
    KernelCommandLine,
    Location,
    Memory,
    Port,
    PortRange,
    SocketPath,
    Text,
    UserName,
    VariableName,
    VariableValue,
)

UNSPECIFIED: Final = "0.0.0.0"  # noqa: S104 - matched against the guest's sockets, never bound
LOOPBACK: Final = "127.0.0.1"
ALL_PORTS: Final = (1, 65535)

Arch = Literal["x86_64", "aarch64"]
"""Architectures that an instance can have."""

ImageArch = Literal["x86_64", "aarch64", "armv7l", "ppc64le", "riscv64", "s390x"]
"""Architectures that an image entry can name: Lima's files list more than we run, and those entries are passed over."""

_ACRONYMS: Final = {"Ip": "IP", "Ssh": "SSH"}


def _alias(name: str) -> str:
    """Lima's spelling of a key: camelCase, with acronyms in capitals except at the start."""
    camel = to_camel(name)
    for word, acronym in _ACRONYMS.items():
        camel = re.sub(rf"(?<=[a-z]){word}(?=[A-Z]|$)", acronym, camel)
    return camel


class _Model(BaseModel):
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


class Initrd(_Model):
    """An initial RAM disk for direct kernel boot."""

    location: Location
    digest: Digest | None = None


class Kernel(_Model):
    """A kernel that QEMU boots directly, without the image's own boot loader."""

    location: Location
    digest: Digest | None = None
    cmdline: KernelCommandLine = Field(default="", description="kernel command line")


class Image(_Model):
    """One way to get the guest's disk. Entries are tried in order; the first that can be had is taken."""

    arch: ImageArch | None = Field(default=None, description="architecture of the image; left out: any")
    location: Location | None = Field(
        default=None, description="http(s) or file address, or a path that starts with / or ~/"
    )
    digest: Digest | None = None
    kernel: Kernel | None = None
    initrd: Initrd | None = None
    build: Literal["debian-12", "debian-13"] | None = Field(
        default=None, description="build the image from the distribution's packages instead of fetching one"
    )

    @field_validator("initrd")
    @classmethod
    def _initrd_needs_kernel(cls, initrd: Initrd | None, info: ValidationInfo) -> Initrd | None:
        if initrd and "kernel" in info.data and info.data["kernel"] is None:
            raise ValueError("an initrd is used only together with a kernel")
        return initrd

    @field_validator("build")
    @classmethod
    def _build_stands_alone(cls, build: str | None, info: ValidationInfo) -> str | None:
        if build:
            for key in ("location", "digest", "kernel", "initrd"):
                if info.data.get(key):
                    raise ValueError(f"an entry has either build or {key}, not both")
        return build

    @model_validator(mode="after")
    def _has_a_source(self) -> Image:
        """Of the whole model on purpose: beside a misspelt `location`, this would say the same mistake twice."""
        if not self.location and not self.build:
            raise ValueError("an image needs a location or a build")
        return self


class User(_Model):
    """The account in the guest. What is left out is taken from the user who runs hostagent."""

    name: UserName | None = None
    comment: Comment | None = Field(default=None, description="full name (the GECOS field)")
    home: AbsolutePath | None = None
    shell: AbsolutePath | None = None
    uid: Annotated[int, Field(ge=1, le=(1 << 32) - 2)] | None = None


class Ssh(_Model):
    """What the guest's own sshd knows. hostagent itself uses no ssh."""

    load_dot_ssh_pub_keys: bool = Field(
        default=True,
        alias="loadDotSSHPubKeys",
        description="let the keys of ~/.ssh/*.pub log in to the guest",
    )


def _span(ports: tuple[int, int]) -> int:
    return ports[1] - ports[0] + 1


def _default_guest_port_range(data: dict[str, Any]) -> tuple[int, int]:
    return (data["guest_port"], data["guest_port"]) if data["guest_port"] else ALL_PORTS


def _default_host_port_range(data: dict[str, Any]) -> tuple[int, int]:
    ports: tuple[int, int] = data["guest_port_range"]
    return (data["host_port"], data["host_port"]) if data["host_port"] else ports


class PortForward(_Model):
    """One rule of `portForwards`, of Lima's shape, with its defaults filled in; the first rule that matches holds.

    `guest_port_range` and `host_port_range` are always set and say all that `guest_port` and `host_port` say; they
    mean nothing on the side that is a socket.
    """

    guest_ip: GuestAddress = Field(
        default=LOOPBACK,
        description="address a guest program is bound to; 127.0.0.1 also means 0.0.0.0, :: and ::1; any means all",
    )
    guest_ip_must_be_zero: bool = Field(
        default_factory=lambda data: data["guest_ip"] == UNSPECIFIED,
        description="match only programs that are bound to all addresses",
    )
    guest_port: Port | None = None
    guest_port_range: PortRange = Field(default_factory=_default_guest_port_range)
    guest_socket: SocketPath | None = None
    host_ip: HostAddress = LOOPBACK
    host_port: Port | None = None
    host_port_range: PortRange = Field(default_factory=_default_host_port_range)
    host_socket: Text | None = None
    proto: Literal["tcp", "udp", "any"] = "any"
    reverse: bool = False
    ignore: bool = False
    static: bool = False

    @model_validator(mode="before")
    @classmethod
    def _zero_address_when_it_must_be(cls, data: object) -> object:
        """Two keys take their defaults from each other, and default factories see only earlier fields."""
        if not isinstance(data, dict) or data.keys() & {"guestIP", "guest_ip"}:
            return data
        if any(data.get(key) is True for key in ("guestIPMustBeZero", "guest_ip_must_be_zero")):
            return {**data, "guestIP": UNSPECIFIED}
        return data

    @field_validator("guest_ip_must_be_zero")
    @classmethod
    def _zero_fits_address(cls, must_be_zero: bool, info: ValidationInfo) -> bool:
        if must_be_zero and info.data.get("guest_ip", UNSPECIFIED) != UNSPECIFIED:
            raise ValueError(f"can be true only when guestIP is {UNSPECIFIED}")
        return must_be_zero

    @field_validator("guest_port_range", "host_port_range")
    @classmethod
    def _range_starts_at_port(cls, ports: tuple[int, int], info: ValidationInfo) -> tuple[int, int]:
        side = "host" if info.field_name == "host_port_range" else "guest"
        if (port := info.data.get(f"{side}_port")) and port != ports[0]:
            raise ValueError(f"must begin with {side}Port, which is {port}")
        return ports

    @field_validator("guest_socket")
    @classmethod
    def _guest_socket_or_port(cls, socket: str | None, info: ValidationInfo) -> str | None:
        if socket and info.data.get("guest_port"):
            raise ValueError("a rule has either guestPort or guestSocket, not both")
        return socket

    @field_validator("host_port")
    @classmethod
    def _host_port_has_one_guest_port(cls, port: int | None, info: ValidationInfo) -> int | None:
        guest = info.data.get("guest_port_range")
        if port and guest and not info.data.get("guest_socket") and (count := _span(guest)) > 1:
            raise ValueError(f"one host port cannot stand for {count} guest ports: give guestPort or hostPortRange")
        return port

    @field_validator("host_port_range")
    @classmethod
    def _ranges_of_equal_length(cls, ports: tuple[int, int], info: ValidationInfo) -> tuple[int, int]:
        guest = info.data.get("guest_port_range")
        if info.data.get("guest_socket"):
            if _span(ports) > 1:
                raise ValueError("guestSocket can be forwarded to one port only")
        elif guest and _span(guest) != _span(ports):
            raise ValueError(f"has {_span(ports)} ports, and the guest's side has {_span(guest)}")
        return ports

    @field_validator("host_socket")
    @classmethod
    def _host_socket_has_one_guest_port(cls, socket: str | None, info: ValidationInfo) -> str | None:
        if socket and info.data.get("host_port"):
            raise ValueError("a rule has either hostPort or hostSocket, not both")
        guest = info.data.get("guest_port_range")
        if socket and guest and not info.data.get("guest_socket") and _span(guest) > 1:
            raise ValueError("needs one guestPort or a guestSocket, not a range")
        return socket

    @field_validator("reverse")
    @classmethod
    def _reverse_needs_sockets(cls, reverse: bool, info: ValidationInfo) -> bool:
        both = ("guest_socket", "host_socket")
        if reverse and any(key in info.data and not info.data[key] for key in both):
            raise ValueError("needs guestSocket and hostSocket")
        return reverse


class Config(_Model):
    """An instance's whole configuration, resolved: every default is filled in."""

    os: Literal["Linux"] = "Linux"
    vm_type: Literal["qemu"] = "qemu"
    arch: Arch = Field(description="left out: the host's")
    cpus: Annotated[int, Field(ge=1, le=256)] = Field(description="left out: those of the host, at most 4")
    memory: Memory = 2 * GIB
    disk: DiskSize = 100 * GIB
    images: tuple[Image, ...] = Field(
        strict=False,
        max_length=100,
        json_schema_extra={"minItems": 1},
        description="tried in order until one can be had",
    )
    user: User = User()
    ssh: Ssh = Ssh()
    env: dict[VariableName, VariableValue] = Field(
        default={}, max_length=1000, description="environment variables of every program in the guest"
    )
    port_forwards: tuple[PortForward, ...] = Field(
        default=(),
        strict=False,
        max_length=1000,
        description="rules for ports; what no rule matches is forwarded to the host's loopback when it is bound to the "
        "guest's loopback or to all addresses",
    )

    @field_validator("images")
    @classmethod
    def _one_image_fits(cls, images: tuple[Image, ...], info: ValidationInfo) -> tuple[Image, ...]:
        arch = info.data.get("arch")
        if not images:  # as a bound of the field, it would also be reported when every entry is wrong
            raise ValueError("must have at least one entry")
        if arch and not any(image.arch in (None, arch) for image in images):
            raise ValueError(f"no entry is for the architecture {arch}")
        return images

    def usable_images(self) -> tuple[Image, ...]:
        """The entries for this instance's architecture, in the order in which they are to be tried; never empty."""
        return tuple(image for image in self.images if image.arch in (None, self.arch))
