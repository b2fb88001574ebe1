"""The part of the control API that is about rules: list, add, remove, and read the configuration again."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from hostagent import api_shapes
from hostagent.api_shapes import RuleChange, RuleList, RuleShape
from hostagent.forward_rules import ForwardRule
from hostagent.live_rules import ADDED
from hostagent.openapi import Operation, Parameter
from hostagent.running_instance import RunningInstance

_LARGEST_BODY: Final = 65_536

OPERATIONS: Final = (
    Operation("GET", "/v1/forwards", "The forwarding rules, in the order in which they are asked.", RuleList),
    Operation(
        "POST",
        "/v1/forwards",
        "Add a rule that decides before all others, until the instance is stopped.",
        RuleChange,
        body=api_shapes.RuleRequest,
    ),
    Operation(
        "DELETE",
        "/v1/forwards/{name}",
        "Remove a rule. One of the configuration is back after the next reload.",
        RuleChange,
        (Parameter("name", str, "The rule's name, as the list shows it.", "path"),),
    ),
    Operation(
        "POST",
        "/v1/config/reload",
        "Read the configuration again, and let its rules hold.",
        api_shapes.ReloadAnswer,
        (Parameter("path", str, "A file that becomes the instance's configuration; its own otherwise."),),
    ),
)
"""What openapi.json says about them."""


def routes(instance: RunningInstance) -> list[BaseRoute]:
    """The routes that answer for `instance`."""
    handlers = _Handlers(instance)
    return [
        Route("/v1/forwards", handlers.list, methods=["GET"]),
        Route("/v1/forwards", handlers.add, methods=["POST"]),
        Route("/v1/forwards/{name}", handlers.remove, methods=["DELETE"]),
        Route("/v1/config/reload", handlers.reload, methods=["POST"]),
    ]


class _Handlers:
    def __init__(self, instance: RunningInstance) -> None:
        self._instance = instance

    async def list(self, request: Request) -> Response:
        rules = self._instance.rules.rules
        used: dict[str, int] = {}
        for forward in self._instance.forwards():
            used[forward.rule] = used.get(forward.rule, 0) + 1
        # By their words, since built-in rules of the same words, one for each port, are one rule to a user.
        shapes = {str(rule): rule_shape(rule, used.get(str(rule), 0)) for rule in rules.in_order()}
        default = "loopback" if rules.forward_by_default else "none"
        return JSONResponse(RuleList(rules=list(shapes.values()), default=default, enabled=rules.enabled))

    async def add(self, request: Request) -> Response:
        rule, warnings = await self._instance.rules.add(await _object(request))
        return JSONResponse(RuleChange(rule=rule_shape(rule), warnings=list(warnings)))

    async def remove(self, request: Request) -> Response:
        rule = await self._instance.rules.remove(request.path_params["name"])
        return JSONResponse(RuleChange(rule=rule_shape(rule), warnings=[]))

    async def reload(self, request: Request) -> Response:
        reloaded = await self._instance.rules.reload(request.query_params.get("path", ""))
        count = len(reloaded.rules.rules)
        answer = api_shapes.ReloadAnswer(rules=count, warnings=list(reloaded.warnings), restart=list(reloaded.restart))
        return JSONResponse(answer)


def rule_shape(rule: ForwardRule, ports: int = 0) -> RuleShape:
    """The JSON document of one rule, which decides about so many ports now."""
    origin = "built-in" if not rule.name else "added" if rule.name.startswith(ADDED) else "configuration"
    return RuleShape(name=rule.name, text=rule.text, origin=origin, ports=ports)


async def _object(request: Request) -> dict[str, Any]:
    body = b""
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > _LARGEST_BODY:
                raise HTTPException(413, f"a rule has at most {_LARGEST_BODY} bytes")
    try:
        entry = json.loads(body)
    except ValueError as exc:
        raise HTTPException(400, "the body must be JSON") from exc
    if not isinstance(entry, dict):
        raise HTTPException(400, "the body must be an object with keys of portForwards")
    return entry
