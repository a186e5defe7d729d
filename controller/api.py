"""The controller's HTTP API: health, metrics, what agents ask for, what people want to see.

Served on TCP and on a unix socket for the command line. With mutual TLS an agent learns on TCP of
its own node only, so that a stolen node reads nothing of the rest of the cluster. Health and
metrics need no certificate: kubelet's probes have none, and a scraper is not to have a node's; the
metrics are numbers alone, without a name or an address.
"""

import asyncio
import hashlib
import re
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import Final, cast

import msgspec
import structlog
from aiohttp import web

from controller.address_api import AddressApi
from controller.agent_problems import take_problems
from controller.agent_requests import only_own_node, refused, seconds_to_wait
from controller.answers import NOT_READ, answer, refusal
from controller.bgp import Announcer
from controller.bgp.passwords import Passwords
from controller.bgp_api import BGPApi
from controller.bundle_api import BundleApi
from controller.capture_api import CaptureApi
from controller.check_api import CheckApi
from controller.cluster_status import NodeFacts, cluster_status
from controller.counters_api import CountersApi
from controller.denials import Denials
from controller.egress_api import EgressApi
from controller.enrolment import Enrolment
from controller.explain_api import ExplainApi
from controller.flow_api import FlowApi
from controller.host_services import document
from controller.leader_link import LeaderApi
from controller.metrics_api import MetricsApi
from controller.peer_routes import Encoded, PeerRouteDocuments
from controller.pod_mtus import PodMtus
from controller.policy_api import PolicyApi
from controller.questions import Questions, Versions
from controller.rates import Rates
from controller.recent_denials import RecentDenials
from controller.reconciler import Reconciler
from controller.reports.status import ControllerStatus
from controller.service_api import ServiceApi
from controller.trace_api import TraceApi
from controller.usefulness import SILENCE
from controller.wait_api import WaitApi
from controller.work_budget import in_turns
from settings import ClusterSettings
from wire import paths
from wire.bgp import NodeBGP
from wire.documents import (
    NodeConfig,
    NodeServices,
    decode_addresses,
    decode_denials,
    decode_digest,
    decode_problems,
    encode,
)
from wire.questions import encode as encode_questions
from wire.sentences import readable
from wire.version import VERSION

log = structlog.get_logger()

REPORTS_BURST = 50
"""Reports (digests, problems, addresses, denials) of one node that are taken as they come."""
REPORTS_PER_SECOND = 5.0
"""After these. An agent has one each few seconds."""
_VERSION: Final = re.compile(r"[0-9A-Za-z.+~-]{1,32}")
"""What an agent may say of a version."""
MOST_WAITING = 12
"""Long polls for one node. Its agent has four, and a moment after its restart perhaps eight."""


ADDRESS_REPORTS_PER_SECOND = 1.0
ADDRESS_REPORTS_BURST = 3
"""Of one node."""


class Api:
    """Routes and answers; see `application`."""

    def __init__(
        self,
        reconciler: Reconciler,
        cluster: ClusterSettings,
        enrolment: Enrolment | None = None,
        denials: Denials | None = None,
        silence: Callable[[], float] = lambda: 0.0,
        announcer: Announcer | None = None,
    ) -> None:
        """`denials` takes what agents report of them; None: there is no API server to tell.

        `silence`: seconds since the source's watches have all said something. `announcer`: None:
        nothing is announced.
        """
        self._reconciler = reconciler
        self._denials = denials
        self._recent_denials = RecentDenials(reconciler.inventory)
        self._pod_mtus = PodMtus(reconciler.problems, reconciler.inventory.knows_node)
        self._silence = silence
        self._cluster = cluster
        self._enrolment = enrolment
        self.questions = Questions(reconciler.inventory.knows_node)
        """To agents."""
        self._egress = EgressApi(reconciler)
        self._report_parts = (
            FlowApi(reconciler),
            ExplainApi(reconciler),
            WaitApi(reconciler),
            CountersApi(reconciler, self._recent_denials),
            ServiceApi(reconciler),
            self._egress,
            PolicyApi(reconciler, cluster),
            CheckApi(reconciler, self.questions),
            BundleApi(cluster),
            TraceApi(reconciler, self.questions, cluster),
            CaptureApi(reconciler, self.questions),
        )
        self._metrics = MetricsApi(reconciler)
        self.identity = f"{socket.gethostname()}_{secrets.token_hex(4)}"
        """Of this process, for other controllers."""
        self._addresses = AddressApi(reconciler, self.identity)
        announcer = announcer or Announcer(reconciler, Passwords(None, "", has_api_server=False))
        self._bgp = BGPApi(reconciler, announcer)
        self._leaders = LeaderApi(self.identity, reconciler.leadership)
        self._started = time.time()
        self._waiting: Counter[str] = Counter()
        self._peer_route_documents = PeerRouteDocuments(reconciler.inventory.nodes)
        self._reports = Rates(REPORTS_PER_SECOND, REPORTS_BURST)
        self._address_reports = Rates(ADDRESS_REPORTS_PER_SECOND, ADDRESS_REPORTS_BURST)

    def application(self, *, local: bool) -> web.Application:
        """What agents and probes may ask; for local users also what tells of the whole cluster."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                *self._metrics.open_routes(),
                *self._leaders.routes(),
                web.get(paths.CONFIG, self._config),
                web.get(paths.SERVICES, self._services),
                web.get(paths.ROUTES, self._routes),
                web.post(paths.DIGEST, self._digest),
                web.post(paths.PROBLEMS, self._take_problems),
                web.post(paths.ADDRESSES, self._take_addresses),
                web.post(paths.DENIALS, self._take_denials),
                web.get(paths.QUESTIONS, self._questions),
                web.post(paths.ANSWER, self._take_answer),
                *self._addresses.agent_routes(),
                *self._egress.agent_routes(self._reporter),
                *self._bgp.agent_routes(self._follow, self._reporter),
            ]
        )
        if self._enrolment and not local:
            application.add_routes([web.post(paths.CERTIFICATE, self._enrolment.sign)])
        if local:
            application.add_routes(self.report_routes())
        return application

    def report_routes(self) -> list[web.RouteDef]:
        """Reports, which tell of the whole cluster; see `controller.viewers` for who may ask."""
        return [
            *self._metrics.routes(),
            self._of_leader(web.get("/v1/status", self._status)),
            # Every controller has sessions of its own.
            *self._bgp.routes(),
            *(
                self._of_leader(route)
                for reports in (*self._report_parts, self._addresses)
                for route in reports.routes()
            ),
        ]

    def _of_leader(self, route: web.RouteDef) -> web.RouteDef:
        """The route, with 421 for an answer while another controller may lead: it knows more."""
        made = route.handler

        async def handler(request: web.Request) -> web.StreamResponse:
            leadership = self._reconciler.leadership
            if leadership.holds() or leadership.is_alone():
                return await made(request)
            leader = readable(leadership.leader)
            does = f"{leader} does" if leader else "it is not known yet which one does"
            return refusal(421, f"this controller does not lead: {does}")

        return web.RouteDef(route.method, route.path, handler, route.kwargs)

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if not self._reconciler.listed.is_set():
            return web.Response(status=503, text="the cluster has not been read yet\n")
        if self._enrolment and self._enrolment.problem:
            return web.Response(status=503, text=f"{self._enrolment.problem}\n")
        return web.Response(text="ok\n")

    async def _status(self, _: web.Request) -> web.Response:
        """See `controller.cluster_status`."""
        reconciler = self._reconciler
        work = cluster_status(
            reconciler.inventory,
            self._node_facts,
            ready=reconciler.listed.is_set(),
            whole=reconciler.desired.source_complete,
            controllers=self._controllers(),
        )
        return await answer(await in_turns(work))

    def _controllers(self) -> tuple[ControllerStatus, ...]:
        """Itself, and those that follow it."""
        leads = self._reconciler.leadership.holds()
        this = ControllerStatus(socket.gethostname(), VERSION, leader=leads, since=self._started)
        return this, *self._leaders.followers()

    def _node_facts(self, name: str) -> NodeFacts:
        """What is known of a node besides its objects."""
        session = self._reconciler.sessions.get(name)
        return NodeFacts(
            connected=session is not None,
            in_sync=session is not None and session.in_sync,
            lag=session.lag if session is not None else 0.0,
            acknowledged_in=session.acknowledged_in if session is not None else 0.0,
            drift=session.audit.found if session is not None else 0,
            proven_age=self._reconciler.proofs.age(name),
            versions=self.questions.versions(name),
        )

    async def _config(self, request: web.Request) -> web.Response:
        """What an agent must know of its node."""
        return await self._follow(request, lambda: self._reconciler.changed, self._node_config)

    async def _services(self, request: web.Request) -> web.Response:
        """What an agent's host does for Services."""
        return await self._follow(
            request, lambda: self._reconciler.services_changed, self._host_services
        )

    async def _routes(self, request: web.Request) -> web.Response:
        """The peers that an agent's node reaches without the tunnel."""
        return await self._follow(request, lambda: self._reconciler.changed, self._peer_routes)

    async def _follow(
        self,
        request: web.Request,
        change: Callable[[], asyncio.Event],
        document: Callable[[str], NodeConfig | NodeServices | NodeBGP | Encoded | None],
    ) -> web.Response:
        """A node's document; with `?after=REVISION&wait=SECONDS`, once it differs.

        `change` gives the event of its next change. There is no document where the Node is none
        or refused.
        """
        name = request.match_info["node"]
        only_own_node(request, name)
        after = request.query.get(paths.AFTER)
        deadline = asyncio.get_running_loop().time() + seconds_to_wait(request)
        while True:
            changed = change()
            if not self._reconciler.listed.is_set():
                return refusal(503, NOT_READ)
            if self._is_stale():
                return refusal(503, "this controller has no news of the cluster; ask another one")
            found = document(name)
            if found is None:
                if not self._reconciler.inventory.knows_node(name):
                    return refusal(404, f"Node {name} is unknown")
                reason = self._reconciler.inventory.nodes.reason(name)
                return refusal(409, f"Node {name}: {reason}")
            if found.revision != after:
                body = found.body if isinstance(found, Encoded) else encode(found)
                return web.Response(body=body, content_type="application/json")
            if (refused := await self._wait(name, changed, deadline)) is not None:
                return refused

    def _is_stale(self) -> bool:
        """Whether another controller leads, which knows more of the cluster."""
        leadership = self._reconciler.leadership
        another_leads = bool(leadership.leader) and not leadership.holds()
        return another_leads and self._silence() > SILENCE

    async def _wait(
        self, node: str, changed: asyncio.Event, deadline: float
    ) -> web.Response | None:
        """Wait for a change; the answer where there is none."""
        if self._waiting[node] >= MOST_WAITING:
            return refusal(429, f"Node {node}: {MOST_WAITING} requests wait already")
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
        name = self._reporter(request)
        try:
            given = decode_digest(await request.read())
        except msgspec.MsgspecError as error:
            return refusal(400, f"not a digest: {error}")
        try:
            # Each call computes a part of what it is compared with.
            while not self._reconciler.prepare_digest(name):  # noqa: ASYNC110
                await asyncio.sleep(0)
            return _json(self._reconciler.take_digest(name, given))
        except KeyError:
            return refusal(503, f"the switch of Node {name} is not connected")

    def _reporter(self, request: web.Request) -> str:
        """The node that reports, before its report is read. Raises `web.HTTPException`."""
        name = request.match_info["node"]
        only_own_node(request, name)
        if not self._reconciler.listed.is_set():
            # Not 404, after which an agent waits for long before it tells again.
            raise refused(web.HTTPServiceUnavailable, NOT_READ)
        if not self._reconciler.inventory.knows_node(name):
            raise refused(web.HTTPNotFound, f"Node {name} is unknown")
        if not self._reports.allows(name):
            raise refused(web.HTTPTooManyRequests, f"Node {name}: too many reports")
        return name

    async def _take_problems(self, request: web.Request) -> web.Response:
        """What an agent cannot do at the moment, in place of what it said before."""
        name = self._reporter(request)
        try:
            given = decode_problems(await request.read())
        except msgspec.MsgspecError as error:
            return refusal(400, f"not a node's problems: {error}")
        take_problems(self._reconciler.inventory, name, given)
        return web.Response(status=204)

    async def _take_addresses(self, request: web.Request) -> web.Response:
        """The addresses that an agent found on its host, in place of those it found before."""
        name = self._reporter(request)
        try:
            given = decode_addresses(await request.read())
        except (msgspec.MsgspecError, ValueError) as error:
            return refusal(400, f"not a node's addresses: {error}")
        # Each change makes Services be read anew. An agent looks once a second.
        if not self._address_reports.allows(name):
            return refusal(429, f"Node {name}: too many reports of addresses")
        self._reconciler.report_addresses(name, given.addresses)
        self._reconciler.inventory.nodes.report_uplink(name, given.uplink)
        self._pod_mtus.report(name, given.pod_mtu)
        return web.Response(status=204)

    async def _take_denials(self, request: web.Request) -> web.Response:
        """What policy denied on the agent's node."""
        name = self._reporter(request)
        try:
            given = decode_denials(await request.read())
        except (msgspec.MsgspecError, ValueError) as error:
            return refusal(400, f"not a node's denials: {error}")
        self._recent_denials.take(name, given)
        if self._denials is not None:
            self._denials.take(name, given)
        return web.Response(status=204)

    async def _questions(self, request: web.Request) -> web.Response:
        """What the controller wants to know of the agent's node."""
        name = request.match_info["node"]
        only_own_node(request, name)
        if not self._reconciler.listed.is_set():
            return refusal(503, NOT_READ)
        if not self._reconciler.inventory.knows_node(name):
            return refusal(404, f"Node {name} is unknown")
        given = (request.query.get(each, "") for each in (paths.AGENT, paths.OPEN_VSWITCH))
        versions = Versions(*(each if _VERSION.fullmatch(each) else "" for each in given))
        asked = await self.questions.fetch(name, seconds_to_wait(request), versions)
        if asked is None:
            return web.Response(status=304)
        return web.Response(body=encode_questions(asked), content_type="application/json")

    async def _take_answer(self, request: web.Request) -> web.Response:
        name = request.match_info["node"]
        only_own_node(request, name)
        question = request.match_info["question"]
        if await self.questions.take(name, question, request.read):
            return web.Response(status=204)
        return refusal(410, "there is no such question, or it waits no more")

    def _node_config(self, name: str) -> NodeConfig | None:
        node = self._reconciler.inventory.view.nodes.get(name)
        if node is None:
            return None
        cluster = self._cluster
        config = NodeConfig(
            node=name,
            uid=node.uid,
            # The protocol has IPv4 only, as have all Nodes that are accepted.
            address=cast("IPv4Address", node.address),
            pod_cidr=cast("IPv4Network", node.pod_cidr),
            pod_range=cluster.pod_range,
            service_range=cluster.service_range,
            host_ranges=cluster.host_ranges,
            tunnel=cluster.tunnel,
            tunnel_id=cluster.tunnel_id,
            tunnel_port=cluster.tunnel_port,
            mtu=cluster.mtu,
            uses_tunnel=self._reconciler.inventory.nodes.use_tunnel,
            revision="",
        )
        revision = hashlib.sha256(encode(config)).hexdigest()[:16]
        return msgspec.structs.replace(config, revision=revision)

    def _peer_routes(self, name: str) -> Encoded | None:
        whole = self._reconciler.desired.source_complete
        return self._peer_route_documents.of(name, whole=whole)

    def _host_services(self, name: str) -> NodeServices | None:
        if name not in self._reconciler.inventory.view.nodes:
            return None
        hosts = self._reconciler.inventory.services.hosts
        whole = self._reconciler.desired.source_complete
        # Not a digest of all of it: a thousand agents ask at one moment what has changed.
        shared, own = hosts.revision(name)
        revision = f"{shared:x}.{own:x}.{whole:d}"
        return document(name, hosts.wanted(name), revision, whole=whole)


def _json(content: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), content_type="application/json")
