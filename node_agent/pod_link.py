"""A pod's interface: the veth pair, and everything inside the pod's network namespace.

The pod is at layer 3: a /32 address, and a link-local router whose MAC it knows for ever. So it
never asks for anything, and no broadcast has to be carried.
"""

import asyncio
import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from pyroute2 import AsyncIPRoute, IPRoute, NetlinkError, netns

from flows import names
from node_agent import netlink, nft
from node_agent.cni_call import CniError, Code
from node_agent.host import NUD_PERMANENT, find_link
from node_agent.pod_messages import IFF_UP, PodLink, inner_messages, pair_message
from node_agent.sysctl import Sysctls

_NS_GET_NSTYPE: Final = 0xB703  # ioctl_ns(2)
_CLONE_NEWNET: Final = 0x4000_0000
_SIOCETHTOOL: Final = 0x8946
_SIOCGIFINDEX: Final = 0x8933
_IFREQ: Final = struct.Struct("16si20x")
_ETHTOOL_STXCSUM: Final = 0x17  # linux/ethtool.h
_ROUTER: Final = str(names.ROUTER_ADDRESS)


@contextmanager
def open_netns(path: Path) -> Iterator[int]:
    """The pod's network namespace as an open file.

    Raises `CniError` where it is gone, is none, or is the node's own.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CniError(
            Code.UNKNOWN_CONTAINER, f"CNI_NETNS: {path}: {error.strerror}", "the container is gone"
        ) from None
    try:
        try:
            kind = fcntl.ioctl(file, _NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != _CLONE_NEWNET:
            raise CniError(
                Code.INVALID_ENVIRONMENT, f"CNI_NETNS: {path} is not a network namespace"
            )
        if os.path.samestat(os.fstat(file), Path("/proc/thread-self/ns/net").stat()):
            raise CniError(
                Code.INVALID_ENVIRONMENT, f"CNI_NETNS: {path} is the node's own network namespace"
            )
        yield file
    finally:
        os.close(file)


class Making:
    """A pod's link, while it is made."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.created: asyncio.Future[None] = loop.create_future()
        """The pair is there and the host's end up, so Open vSwitch can take it; the host's own
        stack does not receive from it."""
        self.connected: asyncio.Future[None] = loop.create_future()
        """The pod's end is up, with address, routes and neighbour."""
        self._loop = loop

    def run(self, namespace: int, sysctls: Sysctls, wanted: PodLink) -> None:
        """Make it, and report to the event loop. For a thread of its own."""
        try:
            _create(namespace, sysctls, wanted)
            self._loop.call_soon_threadsafe(_finish, self.created)
            _connect(namespace, wanted)
            self._loop.call_soon_threadsafe(_finish, self.connected)
        except Exception as error:  # noqa: BLE001  it is raised again in the event loop
            self._loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: Exception) -> None:
        for each in (self.created, self.connected):
            if not each.done():
                each.set_exception(error)
                each.exception()  # nobody may be left to wait for it


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


@asynccontextmanager
async def making(namespace: int, sysctls: Sysctls, wanted: PodLink) -> AsyncIterator[Making]:
    """Make a pair and everything inside the pod; the context ends when nothing works on it.

    A thread of its own does it, and enters the pod's namespace in the end: no failure on the way
    back can leave a thread that goes on working in some pod's namespace. While the kernel works,
    the event loop does other things.

    The two futures raise `CniError` where the pod has an interface of that name or another way out,
    `NetlinkError`, `nft.NftError` and `OSError`.
    """
    link = Making()
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def run() -> None:
        try:
            link.run(namespace, sysctls, wanted)
        finally:
            loop.call_soon_threadsafe(ended.set_result, None)

    threading.Thread(target=run, name=f"link {wanted.port}", daemon=True).start()
    try:
        yield link
    finally:
        # Whoever undoes it must not meet a thread that still adds to it.
        cancelled = False
        while not ended.done():
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError


def _create(namespace: int, sysctls: Sysctls, wanted: PodLink) -> None:
    """Make the pair. No frame passes before `_connect`: the pod's end is down."""
    with netlink.route_socket() as opened:
        (error,) = netlink.exchange(opened, [pair_message(wanted, namespace)])
    if error == errno.EEXIST:
        netns.setns(namespace)
        with _control_socket() as control:
            if _index(control, wanted.ifname) is not None:
                raise CniError(
                    Code.INVALID_ENVIRONMENT,
                    f"CNI_IFNAME: the container has an interface {wanted.ifname} already",
                )
    if error:
        raise NetlinkError(error)
    # Both ends have one MAC: with IPv6 on, the two find that their address is taken.
    sysctls.disable_ipv6(wanted.port)
    if wanted.userspace:
        # Before frames can arrive, the host's own stack must not receive them.
        nft.drop_host_ingress_now(wanted.port)


def _connect(namespace: int, wanted: PodLink) -> None:
    """Set up the pod's side, in its namespace: frames arrive from here on."""
    netns.setns(namespace)
    with _control_socket() as control, netlink.route_socket() as opened:
        index = _index(control, wanted.ifname)
        if index is None:
            raise NetlinkError(errno.ENODEV)
        if wanted.userspace:
            _no_tx_checksum_offload(control, wanted.ifname)
        errors = netlink.exchange(opened, inner_messages(wanted, index))
    *others, to_router, default = errors
    if errno.EEXIST in (to_router, default):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_IFNAME: {wanted.ifname} cannot be the container's way out",
            f"it has a default route, or one to {_ROUTER}, by another interface",
        )
    if worst := max(*others, to_router, default):
        raise NetlinkError(worst)


def _control_socket() -> socket.socket:
    """For ioctl: netdevice(7). It stays in the namespace of the thread that makes it."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _index(control: socket.socket, ifname: str) -> int | None:
    """An interface's index; None where there is none of that name."""
    try:
        answer = fcntl.ioctl(control, _SIOCGIFINDEX, _IFREQ.pack(ifname.encode(), 0))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return int(_IFREQ.unpack(answer)[1])


@asynccontextmanager
async def _inside(namespace: int) -> AsyncIterator[AsyncIPRoute]:
    """A netlink socket in a pod's network namespace, which stays in it wherever it is used."""
    opened = await asyncio.to_thread(_netlink_in, namespace)
    async with AsyncIPRoute(fileno=opened.detach()) as entered:
        yield entered


async def remove(port: str) -> None:
    """Remove the pair, if it is there; returns when neither end is to be found any more.

    That is so within a millisecond. The kernel answers some 15 ms later, when it has waited for
    the last who might still read the memory, and its answer is nobody's to wait for.
    """
    removal = asyncio.ensure_future(asyncio.to_thread(_remove, port))
    while _is_there(port):
        done, _ = await asyncio.wait({removal}, timeout=0.0005)
        if done:
            removal.result()
            return


def _remove(port: str) -> None:
    try:
        with IPRoute() as netlink:
            netlink.link("del", ifname=port)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise


def _is_there(port: str) -> bool:
    try:
        socket.if_nametoindex(port)
    except OSError:
        return False
    return True


async def differences(
    host: AsyncIPRoute,
    namespace: int,
    *,
    ifname: str,
    port: str,
    address: IPv4Address,
    mtu: int | None,
) -> list[str]:
    """What is not as `create` and `connect` left it, at either end, in words.

    `mtu` is what both ends were given; None where nobody knows, and then they must agree.
    """
    mac = names.mac_of(address)
    found = []
    end = await find_link(host, port)
    if end is None:
        found.append(f"the host has no interface {port}")
    else:
        found += _link_differences(end, port, mac, mtu)
        mtu = mtu or end.get_attr("IFLA_MTU")
    async with _inside(namespace) as pod:
        link = await find_link(pod, ifname)
        if link is None:
            return [*found, f"the container has no interface {ifname}"]
        return [
            *found,
            *_link_differences(link, ifname, mac, mtu),
            *await _way_differences(pod, link["index"], ifname, address),
        ]


def _link_differences(link: Any, name: str, mac: str, mtu: int | None) -> Iterator[str]:
    found = link.get_attr("IFLA_ADDRESS"), link.get_attr("IFLA_MTU")
    if found[0] != mac:
        yield f"{name} has MAC {found[0]} instead of {mac}"
    if mtu is not None and found[1] != mtu:
        yield f"{name} has MTU {found[1]} instead of {mtu}"
    if not link["flags"] & IFF_UP:
        yield f"{name} is down"


async def _way_differences(
    pod: AsyncIPRoute, index: int, ifname: str, address: IPv4Address
) -> list[str]:
    found = []
    addresses = [a.get_attr("IFA_LOCAL") async for a in await pod.get_addr(family=2, index=index)]
    if str(address) not in addresses:
        found.append(f"{ifname} has {', '.join(addresses) or 'no address'}, not {address}")
    routes = [route async for route in await pod.get_routes(family=2, oif=index)]
    if not any(r["dst_len"] == 0 and r.get_attr("RTA_GATEWAY") == _ROUTER for r in routes):
        found.append(f"there is no default route by {_ROUTER} on {ifname}")
    if not any(r["dst_len"] == 32 and r.get_attr("RTA_DST") == _ROUTER for r in routes):
        found.append(f"there is no route to {_ROUTER} on {ifname}")
    neighbours = [
        (n.get_attr("NDA_LLADDR"), n["state"])
        async for n in await pod.get_neighbours(family=2, ifindex=index)
        if n.get_attr("NDA_DST") == _ROUTER
    ]
    if neighbours != [(names.ROUTER_MAC, NUD_PERMANENT)]:
        found.append(f"{ifname} does not know the MAC of {_ROUTER} for ever")
    return found


def _netlink_in(namespace: int) -> socket.socket:
    """A netlink socket made inside a namespace, by a thread that enters it and ends there."""
    outcome: list[Any] = []

    def make() -> None:
        try:
            netns.setns(namespace)
            outcome.append(socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    made: socket.socket = outcome[0]
    return made


def _no_tx_checksum_offload(control: socket.socket, ifname: str) -> None:
    """`ethtool -K IFNAME tx off`: the userspace datapath forwards what it gets as it is."""

    class Value(ctypes.Structure):
        _fields_ = (("command", ctypes.c_uint32), ("data", ctypes.c_uint32))

    class Request(ctypes.Structure):
        _fields_ = (("name", ctypes.c_char * 16), ("value", ctypes.POINTER(Value)))

    class Padded(ctypes.Structure):
        _fields_ = (("request", Request), ("rest", ctypes.c_char * 16))

    request = Padded(Request(ifname.encode(), ctypes.pointer(Value(_ETHTOOL_STXCSUM, 0))))
    fcntl.ioctl(control, _SIOCETHTOOL, request)
