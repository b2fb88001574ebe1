"""QEMU's own words, and what a user can do about them. The texts are QEMU 7.2's."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostagent.qemu.last_words import MAX_WORDS, death_error, internal_error, words_of

LOG = Path("/vm/qemu.log")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", ""),
        ("qemu-system-x86_64: warning: host doesn't support requested feature: pni\n", ""),
        ("/usr/bin/qemu-system-x86_64: -smp 0: Invalid CPU topology\n", "-smp 0: Invalid CPU topology"),
        ("qemu: could not open kernel file '/k'\n", "could not open kernel file '/k'"),
        ("one\n\n\x1b[31mtwo\x07\n", "one; [31mtwo"),
        ("x: Assertion `a == b' failed.", "x: Assertion `a == b' failed."),
        ("qemu-system-x86_64: error: no MSR\nx: Assertion `a' failed.", "no MSR"),
        ("x" * 5000, "x" * MAX_WORDS),
    ],
)
def test_the_essence(output: str, words: str) -> None:
    assert words_of(output) == words


@pytest.mark.parametrize(
    ("output", "message", "hint"),
    [
        (
            (
                'qemu-system-x86_64: -device virtio-blk-pci: Failed to get "write" lock\n'
                "Is another process using the image [/vm/disk.qcow2]?\n"
            ),
            "another process uses the disk /vm/disk.qcow2",
            "fuser -v /vm/disk.qcow2",
        ),
        ('Failed to get shared "write" lock\n', "another process uses the disk of this machine", "end that process"),
        (
            "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory\n",
            "QEMU ended at once: cannot set up guest memory 'pc.ram': Cannot allocate memory",
            "less memory",
        ),
        (
            (
                "Could not access KVM kernel module: Permission denied\n"
                "qemu-system-x86_64: failed to initialize kvm: Permission denied\n"
            ),
            (
                "QEMU ended at once: Could not access KVM kernel module: Permission denied; "
                "failed to initialize kvm: Permission denied"
            ),
            "HOSTAGENT_ACCELERATOR=tcg",
        ),
        (
            "qemu-system-x86_64: -netdev user: Could not set up host forwarding rule 'tcp:127.0.0.1:22-:22'\n",
            "QEMU ended at once: -netdev user: Could not set up host forwarding rule 'tcp:127.0.0.1:22-:22'",
            "a host port that is free",
        ),
        ("something new\n", "QEMU ended at once: something new", str(LOG)),
    ],
)
def test_why_it_died(output: str, message: str, hint: str) -> None:
    error = death_error(output, LOG, 1)
    assert error.message == message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("status", "words"), [(None, "it said nothing"), (-9, "it was killed by signal 9"), (3, "exit status 3")]
)
def test_a_silent_death(status: int | None, words: str) -> None:
    assert words in death_error("", LOG, status).message


def test_an_internal_error_is_told_by_its_whole_first_line() -> None:
    assert internal_error("") == internal_error("KVM: entry failed\n") == ""
    assert internal_error("warning: x\nKVM internal error. Sube") == ""
    assert internal_error("warning: x\nKVM internal error. Suberror: 1\x1b\nextra data[0]: 0x1\n") == (
        "KVM internal error. Suberror: 1"
    )
