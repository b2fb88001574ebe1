"""The cloud-init seed."""

from __future__ import annotations

from pathlib import Path


def guest_files() -> Path:
    """The folder with the files for the guest (cloud-init/ in a checkout, hostagent/_cloud_init in a wheel)."""
    packaged = Path(__file__).with_name("_cloud_init")
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "cloud-init"
