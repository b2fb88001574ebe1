"""The keys of a Lima file that hostagent does not act on, so that such a file runs and nothing is dropped unsaid.

A present one gets one warning that names it; one that is spelt as none of ours and none of Lima's is an error. Only
spelling is checked: what a value of these means is Lima's business. The list is that of Lima's `LimaYAML` structure
(pkg/limatype/lima_yaml.go) of version 2.2, with the deprecated keys; `images`, `user`, `ssh` and `portForwards` hold
only what our own schema lacks or does not act on yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class LimaKey:
    """A key of Lima, and what may stand below it."""

    members: Mapping[str, LimaKey] = field(default_factory=lambda: MappingProxyType({}))
    """Keys below; none: whatever stands below is not looked at."""
    listed: bool = False
    """The value is a list of mappings with these members."""
    group: bool = False
    """The value has no meaning of its own: warnings name the members."""
    ours: bool = False
    """The key is also in our schema: what is not a member here is left for the schema to judge."""


_VALUE: Final = LimaKey()


def _keys(*names: str, **nested: LimaKey) -> dict[str, LimaKey]:
    return dict.fromkeys(names, _VALUE) | nested


def _group(*names: str, **nested: LimaKey) -> LimaKey:
    return LimaKey(_keys(*names, **nested), group=True)


def _list(*names: str, **nested: LimaKey) -> LimaKey:
    return LimaKey(_keys(*names, **nested), listed=True)


def _struct(*names: str) -> LimaKey:
    return LimaKey(_keys(*names))


_ROSETTA: Final = _group("enabled", "binfmt")
_FILE: Final = ("location", "arch", "digest")
_MOUNT: Final = LimaKey(
    _keys("location", "mountPoint", "writable", virtiofs=_struct("queueSize"))
    | {
        "sshfs": _struct("cache", "followSymlinks", "sftpDriver"),
        "9p": _struct("securityModel", "protocolVersion", "msize", "cache"),
    },
    listed=True,
)

LIMA_KEYS: Final[Mapping[str, LimaKey]] = MappingProxyType(
    {
        "additionalDisks": _VALUE,
        "audio": _group("device", "interface"),
        "base": _VALUE,
        "caCerts": _group("removeDefaults", "files", "certs"),
        "containerd": _group("system", "user", archives=_list(*_FILE)),
        "copyToHost": _list("guest", "host", "deleteOnStop", "skipIfMissing"),
        "cpuType": _VALUE,
        "dns": _VALUE,
        "firmware": _group("legacyBIOS", images=_list(*_FILE, "vmType")),
        "guestInstallPrefix": _VALUE,
        "hostResolver": _group("enabled", "ipv6", "hosts"),
        "images": LimaKey(
            _keys("variant", "archVariant")
            | {name: LimaKey(_keys("arch"), group=True, ours=True) for name in ("kernel", "initrd")},
            listed=True,
            group=True,
            ours=True,
        ),
        "message": _VALUE,
        "minimumLimaVersion": _VALUE,
        "mountInotify": _VALUE,
        "mountType": _VALUE,
        "mountTypesUnsupported": _VALUE,
        "mounts": _MOUNT,
        "nestedVirtualization": _VALUE,
        "networks": _list("lima", "socket", "vzNAT", "macAddress", "interface", "metric"),
        "osOpts": _VALUE,
        "param": _VALUE,
        "plain": _VALUE,
        "probes": _list("mode", "description", "script", "hint", file=_VALUE),
        "propagateProxyEnv": _VALUE,
        "provision": _list(
            *("mode", "skipDefaultDependencyResolution", "script", "playbook", "content", "overwrite", "owner"),
            *("path", "permissions", "expression", "format", "file"),
        ),
        "rosetta": _ROSETTA,
        "ssh": LimaKey(
            _keys("address", "localPort", "forwardAgent", "forwardX11", "forwardX11Trusted", "overVsock"),
            group=True,
            ours=True,
        ),
        "timezone": _VALUE,
        "tpm": _VALUE,
        "upgradePackages": _VALUE,
        "user": LimaKey(_keys("passwordlessSudo"), group=True, ours=True),
        "video": _group("display", vnc=_group("display")),
        "vmOpts": _group(
            qemu=_group("minimumVersion", "cpuType"), vz=_group("diskImageFormat", rosetta=_group("enabled", "binfmt"))
        ),
    }
)
"""Every such key at the top level of a file, with those below it."""
