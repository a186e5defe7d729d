"""The controller's HTTP API: health, metrics, what agents ask for, what people want to see.

Served on TCP and on a unix socket for the command line. With mutual TLS an agent learns on TCP of
its own node only, so that a stolen node reads nothing of the rest of the cluster. Health and
metrics need no certificate: kubelet's probes have none, and a scraper is not to have a node's; the
metrics are numbers alone, without a name or an address.
"""

import asyncio
import hashlib
import math
from collections import Counter
from typing import Any

import msgspec
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from controller import metrics
from controller.enrolment import Enrolment
from controller.reconciler import Reconciler
from flows.diff import is_ours
from flows.flow import Flow
from flows.pipeline import LAYOUT, Feature
from flows.text import actions_text, match_text, table_name
from openflow import digest, foreign
from openflow.messages import InstalledFlow
from openflow.switch import ConnectionLost, RequestRefused, name_in
from settings import Cluster
from settings.node import NodeConfig, decode_digest, decode_problems, encode

log = structlog.get_logger()

LONGEST_DUMP = 10.0
"""Seconds that a switch may take to tell its flows to somebody who looks."""
LONGEST_WAIT = 60.0
"""Seconds that a long poll is held at most."""
MOST_WAITING = 8
"""Long polls for one node. Its agent has one, and a moment after its restart perhaps two."""


class Api:
    """Routes and answers; see `application`."""

    def __init__(
        self, reconciler: Reconciler, cluster: Cluster, enrolment: Enrolment | None = None
    ) -> None:
        self._reconciler = reconciler
        self._cluster = cluster
        self._enrolment = enrolment
        self._waiting: Counter[str] = Counter()
        view = reconciler.inventory.view
        metrics.NODES.set_function(lambda: len(view.nodes))
        metrics.ATTACHMENTS.set_function(lambda: sum(map(len, view.attachments.values())))
        metrics.PROBLEMS.set_function(lambda: len(reconciler.all_problems()))

    def application(self, *, local: bool) -> web.Application:
        """What agents and probes may ask; for local users also what tells of the whole cluster."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/v1/nodes/{node}/config", self._config),
                web.post("/v1/nodes/{node}/digest", self._digest),
                web.post("/v1/nodes/{node}/problems", self._take_problems),
            ]
        )
        if self._enrolment and not local:
            application.add_routes([web.post("/v1/nodes/{node}/certificate", self._enrolment.sign)])
        if local:
            application.add_routes(
                [
                    web.get("/v1/status", self._status),
                    web.get("/v1/nodes/{node}/flows", self._flows),
                ]
            )
        return application

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if not self._reconciler.listed.is_set():
            return web.Response(status=503, text="the cluster has not been read yet\n")
        if self._enrolment and self._enrolment.problem:
            return web.Response(status=503, text=f"{self._enrolment.problem}\n")
        return web.Response(text="ok\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _status(self, _: web.Request) -> web.Response:
        """Nodes with their sessions, attachments, and everything that is refused."""
        reconciler = self._reconciler
        view = reconciler.inventory.view
        return _json(
            {
                "ready": reconciler.listed.is_set(),
                "whole": reconciler.desired.whole,
                "nodes": {
                    name: {
                        "address": str(node.address),
                        "podCIDR": str(node.pod_cidr),
                        "connected": name in reconciler.sessions,
                        "inSync": name in reconciler.sessions and reconciler.sessions[name].in_sync,
                        "attachments": {
                            attachment.port: {
                                "pod": attachment.pod,
                                "address": str(attachment.address),
                                "ofport": attachment.ofport,
                            }
                            for attachment in view.attachments.get(name, {}).values()
                        },
                    }
                    for name, node in view.nodes.items()
                },
                "problems": reconciler.all_problems(),
            }
        )

    async def _config(self, request: web.Request) -> web.Response:
        """What an agent must know; with `?after=REVISION&wait=SECONDS`, once it differs."""
        name = request.match_info["node"]
        _only_own_node(request, name)
        after = request.query.get("after")
        try:
            wait = float(request.query.get("wait", "0"))
        except ValueError:
            wait = math.nan
        if math.isnan(wait):  # also when asked for: the event loop would lose its order over it
            return _error(400, "wait: not a number of seconds")
        deadline = asyncio.get_running_loop().time() + min(max(wait, 0.0), LONGEST_WAIT)
        while True:
            changed = self._reconciler.changed
            if not self._reconciler.listed.is_set():
                return _error(503, "the controller has not read the cluster yet")
            config = self._node_config(name)
            if config is None:
                if not self._reconciler.inventory.knows_node(name):
                    return _error(404, f"Node {name} is unknown")
                problem = self._reconciler.inventory.problems.get(f"Node {name}", "refused")
                return _error(409, f"Node {name}: {problem}")
            if config.revision != after:
                return web.Response(body=encode(config), content_type="application/json")
            if (refusal := await self._wait(name, changed, deadline)) is not None:
                return refusal

    async def _wait(
        self, node: str, changed: asyncio.Event, deadline: float
    ) -> web.Response | None:
        """Wait for a change; the answer where there is none."""
        if self._waiting[node] >= MOST_WAITING:
            return _error(429, f"Node {node}: {MOST_WAITING} requests wait already")
        self._waiting[node] += 1
        try:
            async with asyncio.timeout_at(deadline):
                await changed.wait()
        except TimeoutError:
            return web.Response(status=304)
        finally:
            self._waiting[node] -= 1
            if not self._waiting[node]:
                del self._waiting[node]
        return None

    async def _digest(self, request: web.Request) -> web.Response:
        """What an agent found on its own switch; whether that is right."""
        name = request.match_info["node"]
        _only_own_node(request, name)
        try:
            given = decode_digest(await request.read())
        except msgspec.MsgspecError as error:
            return _error(400, f"not a digest: {error}")
        try:
            return _json(self._reconciler.take_digest(name, given))
        except KeyError:
            return _error(503, f"the switch of Node {name} is not connected")

    async def _take_problems(self, request: web.Request) -> web.Response:
        """What an agent cannot do at the moment, in place of what it said before."""
        name = request.match_info["node"]
        _only_own_node(request, name)
        try:
            given = decode_problems(await request.read())
        except msgspec.MsgspecError as error:
            return _error(400, f"not a node's problems: {error}")
        if not self._reconciler.inventory.knows_node(name):
            return _error(404, f"Node {name} is unknown")
        self._reconciler.agents.take(name, given)
        return web.Response(status=204)

    def _node_config(self, name: str) -> NodeConfig | None:
        node = self._reconciler.inventory.view.nodes.get(name)
        if node is None:
            return None
        cluster = self._cluster
        config = NodeConfig(
            node=name,
            uid=node.uid,
            address=node.address,
            pod_cidr=node.pod_cidr,
            pod_range=cluster.pod_range,
            service_range=cluster.service_range,
            host_ranges=cluster.host_ranges,
            tunnel=cluster.tunnel,
            tunnel_id=cluster.tunnel_id,
            tunnel_port=cluster.tunnel_port,
            mtu=cluster.mtu,
            revision="",
        )
        revision = hashlib.sha256(encode(config)).hexdigest()[:16]
        return msgspec.structs.replace(config, revision=revision)

    async def _flows(self, request: web.Request) -> web.Response:
        """What a node's switch holds now, each flow with what it stands for.

        `state` is "installed"; "altered" for a desired flow that somebody has changed; "missing"
        for a desired one that the switch does not hold; "stale" for one of ours no longer desired;
        "foreign" for one that nobody here put there.
        """
        name = request.match_info["node"]
        table = request.query.get("table")
        for stage in LAYOUT.tables.values():
            if table is not None and table.lower() in {stage.name.lower(), str(stage.number)}:
                table = stage.name
        if table is not None and table not in LAYOUT.tables:
            known = ", ".join(LAYOUT.tables)
            return _error(404, f"there is no table {table}; there are {known}")
        if not self._reconciler.inventory.knows_node(name):
            return _error(404, f"Node {name} is unknown")
        try:
            async with asyncio.timeout(LONGEST_DUMP):
                installed, groups = await self._reconciler.installed(name)
        except KeyError:
            return _error(503, f"the switch of Node {name} is not connected")
        except (TimeoutError, ConnectionLost, RequestRefused) as error:
            return _error(503, f"the switch of Node {name} does not answer: {error}".rstrip(": "))
        desired = self._reconciler.desired.of(name)
        rows = [_row(entry, desired.pop(entry.cookie, None)) for entry in installed]
        for cookie, (flow, cause) in desired.items():
            rows.append(
                {
                    "table": table_name(flow.table),
                    "tableNumber": flow.table,
                    "priority": flow.priority,
                    "cookie": f"{cookie:#018x}",
                    "packets": 0,
                    "bytes": 0,
                    "state": "missing",
                    **_explained(flow, cause),
                }
            )
        rows = [row for row in rows if table in {None, row["table"]}]
        rows.sort(key=lambda row: (row["tableNumber"], -row["priority"], row["match"]))
        # No feature makes groups so far: whatever there is, is foreign.
        return _json({"node": name, "flows": rows, "foreignGroups": groups})


def _row(entry: InstalledFlow, known: tuple[Flow, str] | None) -> dict[str, Any]:
    """A flow that the switch holds, with the desired flow of its cookie and what that is for."""
    row: dict[str, Any] = {
        "table": table_name(entry.table),
        "tableNumber": entry.table,
        "priority": entry.priority,
        "cookie": f"{entry.cookie:#018x}",
        "packets": entry.packets,
        "bytes": entry.octets,
        "state": "installed",
        "feature": "",
        "object": "",
        "reason": "",
    }
    if known is None:
        row["state"] = "stale" if is_ours(entry.cookie) else "foreign"
    else:
        row |= _explained(*known)
        if digest.of_entry(entry.raw) == digest.of_flow(known[0]):
            return row
        row["state"] = "altered"
    match, actions = foreign.described(entry)
    return row | {"match": match, "actions": actions}


def _explained(flow: Any, cause: str) -> dict[str, str]:
    return {
        "match": match_text(flow).partition(",")[2],
        "actions": actions_text(flow),
        "feature": Feature(flow.feature).name.lower(),
        "object": cause,
        "reason": flow.reason,
    }


def _only_own_node(request: web.Request, node: str) -> None:
    """With mutual TLS, hold the name asked for against the certificate's."""
    if not request.secure:
        return
    name = name_in(request.get_extra_info("peercert"))
    if name == node:
        return
    log.warning("asked for a node that is not the certificate's", node=node, certificate=name)
    if name is None:
        sentence = f"a certificate of Node {node} is needed"
    else:
        sentence = f"the certificate is {name or 'nobody'}'s, not Node {node}'s"
    body = msgspec.json.encode({"error": sentence})
    raise web.HTTPForbidden(body=body, content_type="application/json")


def _json(content: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), content_type="application/json")


def _error(status: int, sentence: str) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode({"error": sentence}),
        content_type="application/json",
    )
