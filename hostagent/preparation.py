"""The phases of `up` before QEMU: image, disk, guest agent, seed, accelerator; they end in a launch plan."""

from __future__ import annotations

import json
from pathlib import Path

from hostagent.cidata import Account, Seed, write_seed
from hostagent.config.resolved import dump_resolved
from hostagent.config.rules import rule_set
from hostagent.config.schema import Config
from hostagent.config.schema import Image as ConfiguredImage
from hostagent.disk_image import image_of_disk
from hostagent.errors import UserError
from hostagent.forward_rules import RuleSet
from hostagent.guest_account import account_of, host_name, socket_variables
from hostagent.guest_payload import GuestPayload, obtain_guest_agent
from hostagent.image_cache import Image
from hostagent.images import ImageSource
from hostagent.launch_plan import LaunchPlan
from hostagent.lifecycle import Phase
from hostagent.paths import InstancePaths
from hostagent.phases import ShownPhases
from hostagent.qemu.accelerator import Accelerator, choose_accelerator
from hostagent.qemu.command_line import Architecture, mac_address
from hostagent.qemu.disks import prepare_disk

_FIRMWARE = (
    "/usr/share/AAVMF/AAVMF_CODE.fd",
    "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
    "/usr/share/edk2/aarch64/QEMU_EFI.fd",
    "/opt/homebrew/share/qemu/edk2-aarch64-code.fd",
)
"""Where distributions put the UEFI firmware that an aarch64 image without a kernel of its own boots through."""


async def prepare(paths: InstancePaths, config: Config, cache: Path, phases: ShownPhases) -> LaunchPlan:
    """Get everything that the instance needs, showing each phase; raises `UserError`."""
    with phases.shown(Phase.IMAGE) as detail:
        sources = [_source(entry, config.arch) for entry in config.usable_images()]
        image = await image_of_disk(paths, sources, cache, phases)
        detail.append(image.origin)
    with phases.shown(Phase.DISK) as detail:
        disk_size, done = await prepare_disk(paths.disk, image, config.disk)
        detail.append(done)
    with phases.shown(Phase.AGENT) as detail:
        payload = await obtain_guest_agent(config.arch, cache, lambda line: phases.update(line, 0, None))
        detail.append(payload.version)
    account = account_of(config)
    forwarding = rule_set(config, socket_variables(paths, account))
    with phases.shown(Phase.SEED) as detail:
        seed = Seed(host_name(paths), account, payload.directory, payload.version, mac_address(paths.name))
        write_seed(paths.seed, seed)
        detail.append(f"user {account.name}")
    with phases.shown(Phase.ACCELERATOR) as detail:
        accelerator = await choose_accelerator(Architecture(config.arch))
        detail.append(str(accelerator.name))
    if accelerator.warning:
        phases.warn(accelerator.warning)
    return _plan(config, image, disk_size, payload, account, accelerator, forwarding)


def _source(entry: ConfiguredImage, architecture: str) -> ImageSource:
    return ImageSource(
        location=entry.location,
        digest=entry.digest,
        kernel=entry.kernel.location if entry.kernel else None,
        kernel_digest=entry.kernel.digest if entry.kernel else None,
        command_line=entry.kernel.cmdline if entry.kernel else "",
        initrd=entry.initrd.location if entry.initrd else None,
        initrd_digest=entry.initrd.digest if entry.initrd else None,
        build=entry.build,
        architecture=architecture,
    )


def _plan(
    config: Config,
    image: Image,
    disk_size: int,
    payload: GuestPayload,
    account: Account,
    accelerator: Accelerator,
    forwarding: RuleSet,
) -> LaunchPlan:
    return LaunchPlan(
        architecture=config.arch,
        cpus=config.cpus,
        memory=config.memory,
        disk_size=disk_size,
        accelerator=str(accelerator.name),
        accelerator_warning=accelerator.warning or "",
        image=image.origin,
        agent_version=payload.version,
        user=account.name,
        kernel=str(image.kernel or ""),
        initrd=str(image.initrd or ""),
        kernel_command_line=image.command_line,
        firmware=_firmware(config.arch, image),
        forwarding=forwarding,
        environment=tuple(sorted(config.env.items())),
        configuration=json.loads(dump_resolved(config)),
    )


def _firmware(architecture: str, image: Image) -> str:
    """The firmware's path where QEMU has none built in: an aarch64 machine that boots from its disk."""
    if architecture != Architecture.AARCH64 or image.kernel is not None:
        return ""
    for path in _FIRMWARE:
        if Path(path).exists():
            return path
    raise UserError(
        "no UEFI firmware for aarch64 was found", "install it: `apt install qemu-efi-aarch64`, or qemu by Homebrew"
    )
