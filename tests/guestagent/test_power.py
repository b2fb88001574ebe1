from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

IN_A_NAMESPACE = """
import os, sys, time
from pathlib import Path
assert os.getpid() == 1  # a process namespace of our own, or none of this may happen
if child := os.fork():
    print(os.waitpid(child, 0)[1])
else:
    import trio
    from guestagent.power import shut_down
    trio.run(lambda: shut_down(reboot=sys.argv[1] == "reboot", systemd=Path("/proc/none")))
    sys.exit(3)
"""


def in_a_namespace(program: str, verb: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program as the first process of a process namespace.

    In a user namespace of its own the test could not even reach the machine if it wanted to.
    """
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child",
         sys.executable, "-c", program, verb],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(("verb", "number"), [("poweroff", signal.SIGINT), ("reboot", signal.SIGHUP)])
def test_without_systemd_the_kernel_is_told(verb: str, number: signal.Signals) -> None:
    """In a process namespace, reboot(2) ends the first process with a signal that says what was asked for."""
    done = in_a_namespace(IN_A_NAMESPACE, verb)
    assert done.returncode in (-number, 128 + number), done.stderr


SYSTEMD_IN_A_NAMESPACE = """
import os, signal, sys
assert os.getpid() == 1
targets = {signal.SIGRTMIN + 4: "poweroff", signal.SIGRTMIN + 5: "reboot"}
signal.pthread_sigmask(signal.SIG_BLOCK, targets)
if child := os.fork():
    asked = targets[signal.sigwait(targets)]
    assert os.waitpid(child, 0)[1] == 0, "whoever asks goes on, until systemd ends it"
    print(asked)
else:
    import trio
    from pathlib import Path
    from guestagent.power import shut_down
    trio.run(lambda: shut_down(reboot=sys.argv[1] == "reboot", systemd=Path("/")))
"""


@pytest.mark.parametrize("verb", ["poweroff", "reboot"])
def test_systemd_is_asked_where_it_runs(verb: str) -> None:
    done = in_a_namespace(SYSTEMD_IN_A_NAMESPACE, verb)
    assert (done.returncode, done.stdout) == (0, f"{verb}\n"), done.stderr
