"""The image that an instance's disk is made from, which stays its image for as long as the disk lives.

A disk is an overlay: it holds what the guest wrote, over one image, and that image's kernel is the one whose modules
are on it. So what `up` chose for the disk is written beside it, before the disk is made, and every later `up` takes it
from there: whatever the configuration says by then, whatever month it is (a built image is built anew each month), and
without asking any server. A configuration that names other images now is told that they are for a new instance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hostagent.errors import UserError
from hostagent.image_cache import Image
from hostagent.images import ImageSource, obtain_image
from hostagent.paths import InstancePaths
from hostagent.phases import ShownPhases
from hostagent.qemu.disks import GONE_HINT


async def image_of_disk(
    paths: InstancePaths, sources: Sequence[ImageSource], cache: Path, phases: ShownPhases
) -> Image:
    """The image of the disk that is there, or of the one that is about to be made: the first of `sources` to be had.

    Raises `UserError` when there is none, what the disk boots with has gone, or it is of another architecture.
    """
    if paths.disk.exists() and paths.disk_image.exists():
        return _recorded(paths, sources, phases)
    image = await obtain_image(sources, cache, phases)
    for note in image.notes:
        phases.warn(note)
    _record(paths.disk_image, image, sources)
    return image


def _record(path: Path, image: Image, sources: Sequence[ImageSource]) -> None:
    values = asdict(image) | {"notes": ()}
    fresh = path.with_suffix(".new")
    document = {"image": values, "sources": _as_json(sources)}
    fresh.write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")
    fresh.replace(path)


def _recorded(paths: InstancePaths, sources: Sequence[ImageSource], phases: ShownPhases) -> Image:
    try:
        document: dict[str, Any] = json.loads(paths.disk_image.read_text(encoding="utf-8"))
        image, before = _image(document["image"]), document["sources"]
        architecture = before[0]["architecture"]
    except (OSError, ValueError, TypeError, KeyError, IndexError) as exc:
        raise UserError(f"{paths.disk_image} cannot be used: {exc}", "delete the instance, and start it anew") from exc
    if architecture != sources[0].architecture:
        raise UserError(
            f"the disk of {paths.name} is of a machine of {architecture}, not of {sources[0].architecture}",
            f"set `arch: {architecture}`, or delete the instance first: `hostagent delete {paths.name}`",
        )
    for path in filter(None, (image.kernel, image.initrd)):
        if not path.exists():
            raise UserError(f"what {paths.name} boots with has gone: {path}", GONE_HINT)
    if before != _as_json(sources):
        phases.warn(
            f"{paths.name} keeps the image that its disk was made from ({image.origin}): "
            f"what `images` says now is for a new instance, after `hostagent delete {paths.name}`"
        )
    return image


def _as_json(sources: Sequence[ImageSource]) -> list[dict[str, Any]]:
    return [asdict(source) for source in sources]


def _image(values: dict[str, Any]) -> Image:
    kernel, initrd = (Path(values[key]) if values[key] else None for key in ("kernel", "initrd"))
    return Image(**values | {"disk": Path(values["disk"]), "kernel": kernel, "initrd": initrd, "notes": ()})
