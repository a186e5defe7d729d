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
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from pyroute2 import AsyncIPRoute, IPRoute, NetlinkError, netns

from flows import names
from node_agent.cni_call import CniError, Code
from node_agent.host import NUD_PERMANENT, find_link
from node_agent.sysctl import Sysctls

_NS_GET_NSTYPE: Final = 0xB703  # ioctl_ns(2)
_CLONE_NEWNET: Final = 0x4000_0000
_SIOCETHTOOL: Final = 0x8946
_SIOCGIFINDEX: Final = 0x8933
_IFREQ: Final = struct.Struct("16si20x")
_ETHTOOL_STXCSUM: Final = 0x17  # linux/ethtool.h
_RT_SCOPE_LINK: Final = 253
_IFF_UP: Final = 1
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


@dataclass(frozen=True, slots=True)
class Inside:
    """A pod's network namespace, and two sockets that stay in it wherever they are used."""

    namespace: int
    netlink: AsyncIPRoute
    control: socket.socket
    """For ioctl: netdevice(7)."""

    def index(self, ifname: str) -> int | None:
        """An interface's index; None where there is none of that name."""
        try:
            answer = fcntl.ioctl(self.control, _SIOCGIFINDEX, _IFREQ.pack(ifname.encode(), 0))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return int(_IFREQ.unpack(answer)[1])


@asynccontextmanager
async def inside(namespace: int) -> AsyncIterator[Inside]:
    """Enter a pod's network namespace once, for all that is to be done in it."""
    netlink, control = _sockets_in(namespace)
    with control:
        async with AsyncIPRoute(fileno=netlink.detach()) as entered:
            yield Inside(namespace, entered, control)


async def create(
    host: AsyncIPRoute,
    sysctls: Sysctls,
    pod: Inside,
    *,
    ifname: str,
    port: str,
    address: IPv4Address,
    mtu: int,
    checksum_offload: bool,
) -> None:
    """Make the pair; no frame passes before `connect`.

    The host's end, named `port`, is up, or Open vSwitch would find it down; the pod's end is not.

    Raises `CniError` where the pod has an interface of that name, `NetlinkError` and `OSError`.
    """
    mac = names.mac_of(address)
    if pod.index(ifname) is not None:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_IFNAME: the container has an interface {ifname} already",
        )
    # MACs are set here and not left to chance, or udev rewrites them later.
    peer = {"ifname": ifname, "net_ns_fd": pod.namespace, "address": mac, "mtu": mtu}
    await host.link("add", ifname=port, kind="veth", address=mac, mtu=mtu, state="up", peer=peer)
    # Both ends have one MAC: with IPv6 on, the two find that their address is taken.
    sysctls.disable_ipv6(port)
    if not checksum_offload:
        _no_tx_checksum_offload(pod.control, ifname)


async def connect(pod: Inside, *, ifname: str, address: IPv4Address) -> None:
    """Set the pod's end up, with address, route and neighbour: frames arrive from here on.

    Raises `CniError` where the container has a default route, or ours, by another interface.
    """
    netlink, index = pod.netlink, pod.index(ifname)
    await netlink.addr("add", index=index, address=str(address), prefixlen=32)
    await netlink.link("set", index=1, state="up")
    await netlink.link("set", index=index, state="up")
    await netlink.neigh(
        "add", dst=_ROUTER, lladdr=names.ROUTER_MAC, ifindex=index, state=NUD_PERMANENT
    )
    try:
        await netlink.route("add", dst=f"{_ROUTER}/32", oif=index, scope=_RT_SCOPE_LINK)
        await netlink.route("add", dst="0.0.0.0/0", gateway=_ROUTER, oif=index)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_IFNAME: {ifname} cannot be the container's way out",
            f"it has a default route, or one to {_ROUTER}, by another interface",
        ) from error


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
    async with inside(namespace) as pod:
        link = await find_link(pod.netlink, ifname)
        if link is None:
            return [*found, f"the container has no interface {ifname}"]
        return [
            *found,
            *_link_differences(link, ifname, mac, mtu),
            *await _way_differences(pod.netlink, link["index"], ifname, address),
        ]


def _link_differences(link: Any, name: str, mac: str, mtu: int | None) -> Iterator[str]:
    found = link.get_attr("IFLA_ADDRESS"), link.get_attr("IFLA_MTU")
    if found[0] != mac:
        yield f"{name} has MAC {found[0]} instead of {mac}"
    if mtu is not None and found[1] != mtu:
        yield f"{name} has MTU {found[1]} instead of {mtu}"
    if not link["flags"] & _IFF_UP:
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


def _sockets_in(namespace: int) -> tuple[socket.socket, socket.socket]:
    """One for netlink and one for ioctl, made inside a namespace.

    A thread of its own enters it and ends there: no failure on the way back can leave a thread
    that goes on working in some pod's namespace.
    """
    outcome: list[Any] = []

    def make() -> None:
        try:
            netns.setns(namespace)
            netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM)
            outcome.append((netlink, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    made: tuple[socket.socket, socket.socket] = outcome[0]
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
