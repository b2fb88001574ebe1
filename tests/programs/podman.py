"""Podman of the distribution: as root with each of its two network back ends, and without root."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.programs.case import Program
from tests.programs.container_cases import BOTH, PUBLISH_BOTH, add_cases, assert_both_answer
from tests.programs.container_engine import Engine
from tests.programs.guest import ProgramGuest

USER, USER_ID = "podman-user", 2_000

AS_ROOT = Engine("podman", "podman")
# In a folder that the user may enter, with the surroundings that a login would give.
AS_USER = Engine(
    f"env --chdir=/ runuser -u {USER} -- env HOME=/home/{USER} XDG_RUNTIME_DIR=/run/user/{USER_ID} podman", "podman"
)


def running_with(backend: str) -> Callable[[ProgramGuest], AbstractContextManager[None]]:
    """Podman as root with this network back end."""

    @contextmanager
    def running(guest: ProgramGuest) -> Iterator[None]:
        guest.put(f'[network]\nnetwork_backend = "{backend}"\n', "/etc/containers/containers.conf")
        AS_ROOT.load(guest)
        yield
        guest.shell("podman rm --all --force; podman rmi --all --force")
        guest.gone(BOTH)

    return running


@contextmanager
def running_as_user(guest: ProgramGuest) -> Iterator[None]:
    """Podman for a normal user, who has a session that goes on without anybody logged in."""
    guest.shell(f"id {USER} 2>/dev/null || useradd --create-home --uid {USER_ID} {USER}; loginctl enable-linger {USER}")
    guest.shell(f"systemctl start user@{USER_ID}.service")
    AS_USER.load(guest)
    yield
    AS_USER.ask(guest, "rm --all --force")
    guest.gone(BOTH)
    guest.shell(f"loginctl disable-linger {USER}; systemctl stop user@{USER_ID}.service")


NETAVARK = Program("Podman (netavark)", running_with("netavark"))
CNI = Program("Podman (CNI plug-ins)", running_with("cni"))
ROOTLESS = Program("Podman without root (slirp4netns)", running_as_user)

add_cases(NETAVARK, AS_ROOT, quick=False)
add_cases(CNI, AS_ROOT, quick=False)
add_cases(ROOTLESS, AS_USER, quick=False)


@NETAVARK.case("the ports of a pod are those of its containers", quick=False)
def pod(guest: ProgramGuest) -> None:
    AS_ROOT.ask(guest, f"pod create --name group {PUBLISH_BOTH}")
    with AS_ROOT.container(guest, "member", "--pod group"):
        for port, protocol in BOTH:
            owner = guest.listening(port, protocol)["owner"]
            guest.note(f"{protocol}: {owner['process']}, {owner['unit']}")
        assert_both_answer("member")
    AS_ROOT.ends(guest, "pod rm --force group", BOTH)
