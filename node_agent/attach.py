"""The CNI operations: attaches and detaches pods.

The lease, on disk, is made first and removed last. If an operation is interrupted, the lease still
names what is left, and `sweep` frees it once the interface is gone.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from ipaddress import IPv4Interface
from typing import Any, Final
from weakref import WeakValueDictionary

import structlog
from pyroute2 import AsyncIPRoute, NetlinkError

from flows import names
from flows.features.classify import attachment_classifier_flow
from node_agent import bridge, nft, pod_link
from node_agent.cni_call import Attached, CniCall, CniError, Code
from node_agent.faults import NodeFault
from node_agent.host_table import HostTable
from node_agent.leases import HostPortError, Lease, LeaseError, LeaseFileError, Leases
from node_agent.local_switch import LocalSwitch
from node_agent.node import ClassifierWatch, LocalNode
from node_agent.ovsdb import Ovsdb
from node_agent.pod_messages import PodLink
from node_agent.problems import PodProblems
from node_agent.sysctl import Sysctls
from node_agent.turns import Turns
from settings import Agent
from wire.documents import NodeConfig

ORPHAN_AGE: Final = 10.0
"""Seconds between the two checks that must agree before anything is freed."""
AT_ONCE: Final = 2
"""ADDs that get their link and flows at the same time. Agent, ovs-vswitchd and controller each have
one thread for it, so more at once are each later, and none of them is sooner."""
LONGEST_TURN: Final = 0.05
"""Seconds: several times what an ADD takes when nothing is wrong."""

log = structlog.get_logger()


class Attachments:
    """ADD, DEL, CHECK, GC and STATUS. Calls for one container come one after another."""

    def __init__(
        self,
        agent: Agent,
        node: LocalNode,
        ovsdb: Ovsdb,
        netlink: AsyncIPRoute,
        leases: Leases,
        watch: ClassifierWatch,
        switch: LocalSwitch,
        table: HostTable,
        problems: PodProblems,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._agent = agent
        self._node = node
        self._ovsdb = ovsdb
        self._netlink = netlink
        self._leases = leases
        self._watch = watch
        self._switch = switch
        self._table = table
        self._problems = problems
        self._clock = clock
        self._turns = Turns(AT_ONCE, LONGEST_TURN)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._suspects: dict[tuple[str, str], float] = {}
        # Detached, but a part is left; these are not repaired.
        self._detached: set[tuple[str, str]] = set()

    async def answer(self, call: CniCall) -> bytes:
        """Execute a call; return the shim's output. Raises `CniError`."""
        match call.command:
            case "STATUS":
                self._node.status()
                return b""
            case "GC":
                await self._collect_garbage(call)
                return b""
        async with self._lock(call.container_id):
            match call.command:
                case "ADD":
                    with self._problems.of(call.pod):
                        return call.result(await self._add(call))
                case "DEL":
                    await self._delete(call.container_id, call.ifname)
                case "CHECK":
                    await self._check(call)
        return b""

    async def sweep(self) -> None:
        """Repair the attachments of running pods, and free those of pods that are gone.

        A pod is gone when its host interface is: the kernel removes it with the pod's network
        namespace. An attachment is freed when two checks, at least `ORPHAN_AGE` apart, agree.
        """
        if not self._ovsdb.connected:
            return
        await self._repair()
        now = time.monotonic()
        self._suspects = {
            key: self._suspects.get(key, now)
            for key in self._orphans()
            if not self._lock(key[0]).locked()
        }
        for (container_id, ifname), since in list(self._suspects.items()):
            lock = self._lock(container_id)
            if now - since < ORPHAN_AGE or lock.locked():
                continue
            async with lock:
                if (container_id, ifname) not in self._orphans():
                    continue
                log.warning("freeing an orphan", container=container_id, ifname=ifname)
                await self._delete(container_id, ifname)

    async def _repair(self) -> None:
        """Restore a missing lease from the port, or a missing port from the lease.

        Somebody may have deleted the bridge, OVSDB or the lease file while pods run.
        """
        for key, lease in self._incomplete().items():
            lock = self._lock(lease.container_id)
            if lock.locked():
                continue
            async with lock:
                # It may be gone: another repair took time.
                if key not in self._incomplete():
                    continue
                try:
                    await self._repair_one(key, lease)
                except NodeFault as error:
                    log.warning("attachment not repaired", port=lease.port, error=str(error))

    async def _repair_one(self, key: tuple[str, str], lease: Lease) -> None:
        if self._leases.get(*key) is None:
            await asyncio.to_thread(self._leases.adopt, lease)
            log.warning("port without a lease adopted", port=lease.port)
        elif self._ovsdb.row("Bridge", names.INTEGRATION_BRIDGE) is not None:
            if self._agent.datapath == "netdev":
                await nft.restore_host_ingress_drops([lease.port])
            await self._ovsdb.transact(bridge.attach(lease))
            log.warning("port attached again", port=lease.port, ofport=lease.ofport)

    def _incomplete(self) -> dict[tuple[str, str], Lease]:
        """The attachments of running pods that have no lease, or no port."""
        leased = {lease.port for lease in self._leases.all()}
        attached = {attachment.port for attachment in bridge.attachments(self._ovsdb)}
        return {
            key: lease
            for key, lease in self._alive().items()
            if lease.port not in leased & attached
        }

    def _known(self) -> dict[tuple[str, str], Lease]:
        """Every attachment. Where lease and port differ, the lease decides."""
        everything = (*bridge.attachments(self._ovsdb), *self._leases.all())
        return {(lease.container_id, lease.ifname): lease for lease in everything}

    def _alive(self) -> dict[tuple[str, str], Lease]:
        links = {name for _, name in socket.if_nameindex()}
        return {
            key: lease
            for key, lease in self._known().items()
            if lease.port in links and key not in self._detached
        }

    def _orphans(self) -> set[tuple[str, str]]:
        return self._known().keys() - self._alive().keys()

    async def _add(self, call: CniCall) -> Attached:
        ready = self._node.ready()
        assert call.netns is not None  # noqa: S101  CniCall.parse saw to it
        with pod_link.open_netns(call.netns) as namespace:
            _refuse_reserved(call, ready.config)
            lease = await self._lease(call)
            self._detached.discard((lease.container_id, lease.ifname))
            try:
                wanted = PodLink(
                    call.ifname, lease.port, lease.address, ready.mtu,
                    userspace=self._agent.datapath == "netdev",
                )  # fmt: skip
                async with (
                    self._turns.turn(),
                    pod_link.making(namespace, Sysctls.of(self._agent), wanted) as link,
                ):
                    # Nothing reaches the address before the switch has the port.
                    await self._switch.forget_connections(lease.address)
                    await link.created
                    await self._ovsdb.transact(bridge.attach(lease))
                    await link.connected
                    await self._wait_for_flows(call, lease)
                if lease.host_ports:
                    await self._table.converge()
            except BaseException as error:
                log.warning("ADD failed", port=lease.port, error=str(error) or repr(error))
                await asyncio.shield(self._delete(lease.container_id, lease.ifname))
                if isinstance(error, NetlinkError | OSError | NodeFault) and not isinstance(
                    error, CniError
                ):
                    raise CniError(
                        Code.TRY_AGAIN,
                        f"{lease.port}: the attachment could not be made",
                        str(error),
                    ) from error
                raise
        log.info("attached", port=lease.port, address=str(lease.address), ofport=lease.ofport)
        return Attached(lease.port, lease.address, ready.mtu)

    async def _lease(self, call: CniCall) -> Lease:
        if self._leases.get(call.container_id, call.ifname) is not None:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"CNI_CONTAINERID, CNI_IFNAME: {call.container_id} has {call.ifname} already",
                "an ADD was answered, or cut off, before; DEL comes first",
            )
        try:
            return await asyncio.to_thread(
                self._leases.take, call.container_id, call.ifname, call.port,
                now=self._clock(), ofports=self._ovsdb.ofports,
                netns=call.netns, pod=call.pod, host_ports=call.host_ports,
                dead=self._orphans() if call.host_ports else (),
            )  # fmt: skip
        except LeaseFileError as error:
            raise CniError(Code.TRY_AGAIN, "no address can be leased now", str(error)) from error
        except HostPortError as error:
            raise CniError(Code.HOST_PORT, "a host port is taken", str(error)) from error
        except LeaseError as error:
            raise CniError(Code.NO_ADDRESS, "no address can be leased", str(error)) from error

    async def _wait_for_flows(self, call: CniCall, lease: Lease) -> None:
        deadline = time.monotonic() + self._agent.add_timeout

        def settled() -> bool:
            return bridge.has_ofport(self._ovsdb, lease.port, lease.ofport) or bool(refusal())

        def refusal() -> str | None:
            return bridge.refusal(self._ovsdb, lease.port, lease.ofport)

        plugged = await self._ovsdb.wait_until(settled, self._agent.add_timeout)
        if (why := refusal()) is not None:
            raise CniError(Code.TRY_AGAIN, f"the switch refuses port {lease.port}", why)
        if not plugged:
            raise CniError(
                Code.TRY_AGAIN,
                f"the switch has not taken port {lease.port}",
                "is ovs-vswitchd running?",
            )
        cookie = attachment_classifier_flow(lease.ofport, names.attachment_tag(lease.port)).cookie
        if await self._watch.wait_for(cookie, max(0, deadline - time.monotonic())):
            return
        up, why = bridge.controller_session(self._ovsdb)
        what = f"Pod {call.pod.namespace}/{call.pod.name}" if call.pod else "this container"
        raise CniError(
            Code.TRY_AGAIN,
            f"the switch got no flows for port {lease.port} within {self._agent.add_timeout:g} s",
            f"the controller has a session, but has not accepted {what}; does the Pod exist with "
            f"this uid and spec.nodeName {self._agent.node}?"
            if up
            else f"Open vSwitch reports no controller session: {why}",
        )

    async def _delete(self, container_id: str, ifname: str) -> None:
        lease = self._leases.get(container_id, ifname)
        ports = {
            attachment.port
            for attachment in bridge.attachments_of(self._ovsdb, container_id)
            if attachment.ifname == ifname
        }
        if lease is not None:
            ports.add(lease.port)
        key = (container_id, ifname)
        self._detached.add(key)
        complete = [await self._remove(port, lease) for port in ports]
        if all(complete):
            self._detached.discard(key)

    async def _remove(self, port: str, lease: Lease | None) -> bool:
        """Remove every part of an attachment, then its lease.

        False where a part is left: the lease stays, and `sweep` tries again.
        """
        steps = [
            self._ovsdb.transact(bridge.detach([port]), within=5.0),
            pod_link.remove(port),
        ]
        if self._agent.datapath == "netdev":
            steps.append(nft.allow_host_ingress(port))
        complete = True
        for step in steps:
            try:
                await step
            except (NetlinkError, NodeFault, OSError) as error:
                complete = False
                log.warning("part of an attachment is left", port=port, error=str(error))
        if complete and lease is not None:
            try:
                await asyncio.to_thread(
                    self._leases.release, lease.container_id, lease.ifname, now=self._clock()
                )
            except LeaseError as error:
                complete = False
                log.warning("a lease is left", port=port, error=str(error))
            else:
                await self._remove_host_ports(lease)
        if complete:
            log.info("detached", port=port, address=str(lease.address) if lease else None)
        return complete

    async def _remove_host_ports(self, lease: Lease) -> None:
        """Remove its host ports. If that fails, the next repair of the node removes them."""
        try:
            if lease.host_ports:
                await self._table.converge()
        except (NodeFault, OSError) as error:
            log.warning("host ports are left", port=lease.port, error=str(error))

    async def _check(self, call: CniCall) -> None:
        previous = call.conf.get("prevResult")
        if not isinstance(previous, dict):
            raise CniError(Code.INVALID_CONFIG, "stdin: prevResult is missing, and CHECK needs it")
        lease = self._leases.get(call.container_id, call.ifname)
        if lease is None:
            raise CniError(Code.DIFFERS, f"{call.container_id} {call.ifname} is not attached")
        found = _result_differences(previous, lease)
        port = bridge.port_difference(self._ovsdb, lease.port, lease.ofport)
        found += [port] if port else []
        assert call.netns is not None  # noqa: S101
        try:
            with pod_link.open_netns(call.netns) as namespace:
                found += await pod_link.differences(
                    self._netlink, namespace,
                    ifname=call.ifname,
                    port=lease.port,
                    address=lease.address,
                    mtu=_mtu(previous, lease),
                )  # fmt: skip
            if (
                self._agent.datapath == "netdev"
                and lease.port not in await nft.host_ingress_drops()
            ):
                found.append(f"the host's own stack receives what arrives at {lease.port}")
            if lease.host_ports:
                found += await self._table.missing(lease)
        except (NetlinkError, NodeFault, OSError) as error:
            raise CniError(Code.TRY_AGAIN, f"{lease.port} cannot be checked", str(error)) from error
        cookie = attachment_classifier_flow(lease.ofport, names.attachment_tag(lease.port)).cookie
        if not await self._watch.wait_for(cookie, 1.0):
            found.append(f"the switch has no flow that lets port {lease.port} in")
        if found:
            raise CniError(Code.DIFFERS, f"{lease.port} is not as it was made", "; ".join(found))

    async def _collect_garbage(self, call: CniCall) -> None:
        valid = call.valid_attachments()
        known = {(lease.container_id, lease.ifname) for lease in self._leases.all()}
        known |= {(a.container_id, a.ifname) for a in bridge.attachments(self._ovsdb)}
        for container_id, ifname in sorted(known - valid):
            lock = self._lock(container_id)
            if lock.locked():
                continue  # being added: the runtime's list is older
            async with lock:
                log.info("collecting", container=container_id, ifname=ifname)
                await self._delete(container_id, ifname)

    def _lock(self, container_id: str) -> asyncio.Lock:
        return self._locks.setdefault(container_id, asyncio.Lock())


def _refuse_reserved(call: CniCall, config: NodeConfig) -> None:
    """Raise `CniError` where a host port is one that every node needs itself."""
    for port in call.host_ports:
        if holder := names.reserved_for(port.protocol, port.port, config.tunnel_port):
            raise CniError(
                Code.HOST_PORT,
                "a host port is reserved",
                f"host port {port.title} is {holder}'s on every node",
            )


def _mtu(previous: dict[str, Any], lease: Lease) -> int | None:
    """The MTU in the answer of ADD; before version 1.1.0 there was none."""
    try:
        return next(
            int(entry["mtu"]) for entry in previous["interfaces"] if entry["name"] == lease.port
        )
    except (KeyError, TypeError, ValueError, StopIteration):
        return None  # `_result_differences` reports what prevResult lacks


def _result_differences(previous: dict[str, Any], lease: Lease) -> list[str]:
    try:
        addresses = [IPv4Interface(entry["address"]).ip for entry in previous["ips"]]
        interfaces = [entry["name"] for entry in previous["interfaces"]]
    except (KeyError, TypeError, ValueError) as error:
        return [f"prevResult cannot be read: {error!r}"]
    found = []
    if lease.address not in addresses:
        found.append(f"prevResult does not have the address {lease.address}")
    if lease.port not in interfaces or lease.ifname not in interfaces:
        found.append(f"prevResult does not have the interfaces {lease.port} and {lease.ifname}")
    return found
