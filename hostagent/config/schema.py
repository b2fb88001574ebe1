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

from typing import Annotated, Final, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hostagent.config.model import Model
from hostagent.config.port_forward import PortForward
from hostagent.config.values import (
    GIB,
    AbsolutePath,
    Comment,
    Digest,
    DiskSize,
    KernelCommandLine,
    Location,
    Memory,
    UserName,
    VariableName,
    VariableValue,
)

MAX_RULES: Final = 1000
"""Entries of `portForwards`."""

Arch = Literal["x86_64", "aarch64"]
"""Architectures that an instance can have."""

ImageArch = Literal["x86_64", "aarch64", "armv7l", "ppc64le", "riscv64", "s390x"]
"""Architectures that an image entry can name: Lima's files list more than we run, and those entries are passed over."""


class Initrd(Model):
    """An initial RAM disk for direct kernel boot."""

    location: Location
    digest: Digest | None = None


class Kernel(Model):
    """A kernel that QEMU boots directly, without the image's own boot loader."""

    location: Location
    digest: Digest | None = None
    cmdline: KernelCommandLine = Field(default="", description="kernel command line")


class Image(Model):
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


class User(Model):
    """The account in the guest. What is left out is taken from the user who runs hostagent."""

    name: UserName | None = None
    comment: Comment | None = Field(default=None, description="full name (the GECOS field)")
    home: AbsolutePath | None = None
    shell: AbsolutePath | None = None
    uid: Annotated[int, Field(ge=1, le=(1 << 32) - 2)] | None = None


class Ssh(Model):
    """What the guest's own sshd knows. hostagent itself uses no ssh."""

    load_dot_ssh_pub_keys: bool = Field(
        default=True,
        alias="loadDotSSHPubKeys",
        description="let the keys of ~/.ssh/*.pub log in to the guest",
    )


class Config(Model):
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
        max_length=MAX_RULES,
        description="rules for ports; what no rule matches is treated as forwardDefault says",
    )
    forward_default: Literal["loopback", "none"] = Field(
        default="loopback",
        description="what becomes of a port that no rule matches. loopback: it is forwarded to the host's loopback "
        "when it is bound to the guest's loopback or to all addresses; none: it is not, so rules are an allow-list",
    )
    forwarding: bool = Field(default=True, description="false switches all forwarding off, whatever the rules say")

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
