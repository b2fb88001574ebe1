"""Guests of a few instructions, as firmware for the real QEMU (x86, real mode)."""

from __future__ import annotations

_JUMP = bytes.fromhex("ea000000f0")  # ljmp $0xf000,$0: where the processor begins, 16 bytes before the end


def _image(code: bytes) -> bytes:
    return code.ljust(65520, b"\0") + _JUMP.ljust(16, b"\0")


_AWAIT_BUTTON = (
    "66b840f80080baf80c66efbafc0c66b80106000066ef"  # PCI 0:1f.0, 0x40 = 0x601: ACPI registers at port 0x600
    "66b844f80080baf80c66efbafc0cb080ee"  # 0x44 = 0x80: enabled
    "ba0206b80001ef"  # port 0x602 = 0x100: the power button shall be noticed
    "baf803b068eeb069ee"  # port 0x3f8 = "hi": the serial console
    "ba0006edf6c40174f7"  # until bit 8 of port 0x600 is set: it was pressed
)
_HALT = "f4ebfd"  # 2: hlt; jmp 2b

POWER_BUTTON = _image(bytes.fromhex(_AWAIT_BUTTON + "ba0406b80020ef" + _HALT))  # port 0x604 = 0x2000: soft off
"""Says "hi", waits until its power button is pressed, and powers off."""

RESET_BUTTON = _image(bytes.fromhex(_AWAIT_BUTTON + "baf90cb006ee" + _HALT))  # port 0xcf9 = 6: hard reset (ICH9)
"""The same, and resets itself."""
