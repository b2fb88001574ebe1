"""All programs, in the order of the table."""

from __future__ import annotations

from tests.programs import docker, name_server, podman, postgresql, redis_server, web_server, websocket_server
from tests.programs.case import Program

PROGRAMS: tuple[Program, ...] = (
    postgresql.PROGRAM,
    redis_server.PROGRAM,
    web_server.PROGRAM,
    websocket_server.PROGRAM,
    name_server.PROGRAM,
    docker.WITH_PROXY,
    docker.WITHOUT_PROXY,
    podman.NETAVARK,
    podman.CNI,
    podman.ROOTLESS,
)
