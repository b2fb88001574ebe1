"""Order, prerequisites and honesty of the whole test run.

The quick tests come first, then those in the tiny guest, then those in the full one: a broken parser shows in seconds,
not after a boot. With several workers (pytest-xdist) it is the other way round, so that what takes longest is not left
to run alone at the end; the tests of one file stay together, and those that share the full guest. A missing tool ends
the run before it begins, with the command that installs it. Nothing is skipped: a test that skips itself has failed.

Hypothesis has no deadlines: the time of one example says more about a busy machine than about the code. It takes the
same examples each time, so that a run says something about the change that it is made for. Others are looked for by
`pytest --hypothesis-profile search`.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Generator, Iterable

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("same examples", deadline=None, derandomize=True)
settings.register_profile("few examples", deadline=None, derandomize=True, max_examples=10)
settings.register_profile("search", deadline=None)
settings.load_profile("same examples")

ORDER = ("", "tiny_guest", "full_guest")
"""Kinds of tests by their marker, quickest first; the first has none."""

TOOLS = {
    "": ("git", "strip", "objdump"),
    "tiny_guest": ("qemu-system-x86_64", "busybox", "apt-get", "dpkg-deb", "ldd", "setpriv"),
    "full_guest": ("qemu-system-x86_64", "qemu-img", "mmdebstrap"),
}
"""Programs that each kind needs on PATH."""


def kind(item: pytest.Item) -> str:
    """The marker that decides an item's place: the slowest one it has."""
    return next((marker for marker in reversed(ORDER[1:]) if item.get_closest_marker(marker)), ORDER[0])


def missing_tools(kinds: Iterable[str]) -> list[str]:
    """Programs that tests of `kinds` need and PATH lacks."""
    return sorted({tool for name in kinds for tool in TOOLS[name] if shutil.which(tool) is None})


def require_tools(kinds: Iterable[str]) -> None:
    """End the run when programs are missing."""
    if missing := missing_tools(kinds):
        raise pytest.UsageError(
            f"these tests need programs that are not installed: {', '.join(missing)}. "
            "`make -C build test` installs them; build/apt-packages.txt names their packages."
        )


def pytest_configure(config: pytest.Config) -> None:
    """Take no ignored signals over, which children would inherit: `nohup` and a shell's `&` ignore some (nohup(1))."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if getattr(config.option, "numprocesses", None):
        require_tools(ORDER)  # before there are workers, whose words would get lost


class GuestScheduling(LoadScopeScheduling):  # type: ignore[misc]  # it ships no types
    """Gives a worker all tests of a file, or all that share the full guest."""

    def _split_scope(self, nodeid: str) -> str:
        # Not `--dist loadgroup`, which changes an attribute that the items of pytest 9.2 do not have any more.
        file = nodeid.partition("::")[0]
        return "full guest" if file.startswith("tests/e2e/test_full_guest") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GuestScheduling:
    config.option.loadscopereorder = False  # the order of the items is meant
    return GuestScheduling(config, log)


@pytest.hookimpl(trylast=True)  # after -k and -m took away what they do not want
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(kind(item)), reverse=hasattr(config, "workerinput"))
    require_tools({kind(item) for item in items})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skipped itself: {report.longrepr}. Nothing is skipped here; see conftest.py."
    if report.failed and kind(item):
        from tests.e2e import diagnosis, shared_guest, vm

        report.sections += [("tiny guest", diagnosis.of_tiny_guest(guest)) for guest in shared_guest.living]
        report.sections += [("instances", diagnosis.of_installation(at)) for at in vm.living]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped itself. Nothing is skipped here; see conftest.py."
    return report
