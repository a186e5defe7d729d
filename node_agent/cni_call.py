"""One CNI call as the shim hands it over, checked; its errors, and the results that go back.

Everything is from the CNI specification, versions 0.3.1 to 1.1.0.
"""

import json
import re
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any, Final, Self

from flows import names
from flows.features.protocols import LAYER_4_NAMES
from node_agent.faults import NodeFault

VERSIONS: Final = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
_POD_IFNAME: Final = "eth0"
"""What every runtime calls a pod's interface, and `flows.names.pod_port_prefix` takes for given."""
_SINCE: Final = {"ADD": "0.3.1", "DEL": "0.3.1", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
_REQUIRED: Final = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": (),
    "STATUS": (),
}
# A value that ends up in a path, a link's name or OVSDB is held to a pattern first.
_PATTERNS: Final = {
    "CNI_CONTAINERID": re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,255}"),
    "CNI_IFNAME": re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}"),
    "CNI_NETNS": re.compile(r"/[\x21-\x7e]{1,1023}"),
    "K8S_POD_NAMESPACE": re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"),
    "K8S_POD_NAME": re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"),
    "K8S_POD_UID": re.compile(r"[a-zA-Z0-9-]{1,64}"),
}


class Code(IntEnum):
    """Error codes: below 100 the specification's, from 100 on our own."""

    INCOMPATIBLE_VERSION = 1
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    DECODE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    INTERNAL = 100
    NO_ADDRESS = 101
    DIFFERS = 102
    """CHECK found an attachment that is not what ADD answered."""
    HOST_PORT = 103
    """The node itself or another of its pods has the host port."""


class CniError(NodeFault):
    """What the runtime is told: a code, one sentence, and what to look at."""

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


@dataclass(frozen=True, slots=True)
class Pod:
    """The Kubernetes pod of an attachment, as CNI_ARGS name it."""

    namespace: str
    name: str
    uid: str


_PROTOCOLS: Final = {name: number for number, name in LAYER_4_NAMES.items()}


@dataclass(frozen=True, slots=True, order=True)
class HostPort:
    """A port of the host that leads to one of the container's (`portMappings`)."""

    protocol: int
    """IANA's number."""
    address: IPv4Address | None
    """Of the host; None: each that it has."""
    port: int
    container_port: int

    @property
    def claim(self) -> tuple[int, IPv4Address | None, int]:
        """What no two attachments of a node may have."""
        return self.protocol, self.address, self.port

    @property
    def title(self) -> str:
        """The claim as people write it."""
        protocol = LAYER_4_NAMES[self.protocol]
        return f"{self.address or '0.0.0.0'}:{self.port}/{protocol}"  # noqa: S104  only a name

    def __str__(self) -> str:
        """What `read` takes."""
        return f"{self.protocol}/{self.address or ''}/{self.port}/{self.container_port}"

    @classmethod
    def read(cls, text: str) -> Self:
        """From `str`. Raises `ValueError`."""
        protocol, address, port, container_port = text.split("/")
        return cls(
            int(protocol), IPv4Address(address) if address else None, int(port), int(container_port)
        )


@dataclass(frozen=True, slots=True)
class CniCall:
    """A call whose every value has been checked. What a command does not take is empty."""

    command: str
    version: str
    container_id: str
    ifname: str
    netns: Path | None
    pod: Pod | None
    conf: dict[str, Any]
    host_ports: tuple[HostPort, ...] = ()

    @property
    def port(self) -> str:
        """The name of this attachment's OVS port and host interface (`flows.names`)."""
        if self.pod is None:
            return names.container_port_name(self.container_id, self.ifname)
        return names.port_name(
            self.pod.namespace, self.pod.name, self.pod.uid, self.ifname, self.container_id
        )

    @classmethod
    def parse(cls, request: bytes) -> Self:
        """Read what the shim sent (see `cni/sluice_cni.py`). Raises `CniError`."""
        environment, separator, stdin = request.partition(b"\0\0")
        if not separator:
            environment, stdin = b"", request.removeprefix(b"\0")
        variables = {}
        for entry in environment.split(b"\0"):
            key, _, value = entry.decode(errors="replace").partition("=")
            variables[key] = value
        command = variables.get("CNI_COMMAND", "")
        if command not in _REQUIRED:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"CNI_COMMAND: {command[:40]!r} is none of {', '.join(_REQUIRED)}, VERSION",
            )
        conf = _conf(stdin)
        version = _version(conf, command)
        for key in _REQUIRED[command]:
            if not variables.get(key):
                raise CniError(
                    Code.INVALID_ENVIRONMENT, f"{key} is not set, and {command} needs it"
                )
        for key in ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"):
            _check(key, variables.get(key, ""))
        netns = variables.get("CNI_NETNS")
        return cls(
            command=command,
            version=version,
            container_id=variables.get("CNI_CONTAINERID", ""),
            ifname=variables.get("CNI_IFNAME", ""),
            netns=Path(netns) if netns else None,
            # DEL goes by container id alone and must not fail over what it does not need.
            pod=_pod(variables.get("CNI_ARGS", ""), variables["CNI_IFNAME"])
            if command in ("ADD", "CHECK")
            else None,
            conf=conf,
            host_ports=_host_ports(conf) if command == "ADD" else (),
        )

    def valid_attachments(self) -> set[tuple[str, str]]:
        """GC's (container id, interface) pairs that are to stay. Raises `CniError`."""
        match self.conf.get("cni.dev/valid-attachments"):
            # An empty list is the runtime's word that nothing is left; an empty object is not.
            case list(entries) if all(map(_names_attachment, entries)):
                return {(entry["containerID"], entry["ifname"]) for entry in entries}
        raise CniError(
            Code.INVALID_CONFIG,
            "stdin: cni.dev/valid-attachments is not a list of {containerID, ifname}",
            "without it nothing is released",
        )

    def result(self, attachment: "Attached") -> bytes:
        """ADD's answer in the version that the configuration asks for."""
        link: dict[str, Any] = {"mac": attachment.mac}
        if self.version == "1.1.0":
            link["mtu"] = attachment.mtu
        address: dict[str, Any] = {
            "address": f"{attachment.address}/32",
            "gateway": str(names.ROUTER_ADDRESS),
            "interface": 1,
        }
        if self.version in ("0.3.1", "0.4.0"):
            address["version"] = "4"
        return _json(
            {
                "cniVersion": self.version,
                "interfaces": [
                    {"name": attachment.port, **link},
                    {"name": self.ifname, **link, "sandbox": str(self.netns)},
                ],
                "ips": [address],
                "routes": [{"dst": "0.0.0.0/0", "gw": str(names.ROUTER_ADDRESS)}],
                "dns": {},
            }
        )


@dataclass(frozen=True, slots=True)
class Attached:
    """What ADD made."""

    port: str
    address: IPv4Address
    mtu: int

    @property
    def mac(self) -> str:
        """The MAC of both ends."""
        return names.mac_of(self.address)


def error_json(error: CniError, version: str = VERSIONS[-1]) -> bytes:
    """A failed call's answer."""
    text = {"cniVersion": version, "code": int(error.code), "msg": error.message}
    return _json({**text, **({"details": error.details} if error.details else {})})


def conf_version(request: bytes) -> str:
    """The version to answer a call in that could not be read otherwise."""
    try:
        version = json.loads(request.partition(b"\0\0")[2])["cniVersion"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return VERSIONS[-1]
    return version if version in VERSIONS else VERSIONS[-1]


def _conf(stdin: bytes) -> dict[str, Any]:
    try:
        conf = json.loads(stdin)
    except (ValueError, RecursionError) as error:
        raise CniError(
            Code.DECODE, "stdin: the network configuration is not JSON", str(error)
        ) from None
    if not isinstance(conf, dict):
        raise CniError(Code.DECODE, "stdin: the network configuration is not a JSON object")
    if not isinstance(conf.get("name"), str) or not conf["name"]:
        raise CniError(Code.INVALID_CONFIG, "stdin: name: the network configuration has no name")
    return conf


def _version(conf: dict[str, Any], command: str) -> str:
    version = conf.get("cniVersion")
    if version not in VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"stdin: cniVersion: {repr(version)[:80]} is none of {', '.join(VERSIONS)}",
        )
    if VERSIONS.index(version) < VERSIONS.index(_SINCE[command]):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"stdin: cniVersion: {command} needs {_SINCE[command]}, not {version}",
        )
    return str(version)


def _names_attachment(entry: object) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), str) for key in ("containerID", "ifname")
    )


def _pod(arguments: str, ifname: str) -> Pod | None:
    given: dict[str, str] = {}
    for entry in filter(None, arguments.split(";")):
        key, equals, value = entry.partition("=")
        if not equals:
            raise CniError(
                Code.INVALID_ENVIRONMENT, f"CNI_ARGS: {entry[:80]!r} is not of the form KEY=VALUE"
            )
        given[key] = value
    keys = ("K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID")
    # podman gives its containers' names as K8S_POD_NAME, and nothing else of Kubernetes.
    if not given.get("K8S_POD_NAMESPACE") and not given.get("K8S_POD_UID"):
        return None
    for key in keys:
        if not given.get(key):
            raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS: {key} is missing")
        _check(key, given[key], "CNI_ARGS: ")
    if ifname != _POD_IFNAME:
        # The controller knows a pod's port by a name that it computes for this interface alone.
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_IFNAME: {ifname} cannot be a Kubernetes pod's interface, only {_POD_IFNAME}",
        )
    return Pod(*(given[key] for key in keys))


def _host_ports(conf: dict[str, Any]) -> tuple[HostPort, ...]:
    given = conf.get("runtimeConfig") or {}
    if not isinstance(given, dict):
        raise CniError(Code.INVALID_CONFIG, "stdin: runtimeConfig is not an object")
    entries = given.get("portMappings") or []
    if not isinstance(entries, list):
        raise CniError(Code.INVALID_CONFIG, "stdin: runtimeConfig.portMappings is not a list")
    found: dict[tuple[int, IPv4Address | None, int], HostPort] = {}
    for index, entry in enumerate(entries):
        port = _host_port(f"stdin: runtimeConfig.portMappings[{index}]", entry)
        if port is not None and found.setdefault(port.claim, port) != port:
            raise CniError(
                Code.INVALID_CONFIG,
                f"stdin: runtimeConfig.portMappings[{index}]: {port.title} leads to container "
                f"port {found[port.claim].container_port} already",
            )
    return tuple(found.values())


def _host_port(where: str, entry: object) -> HostPort | None:
    """One of `portMappings`; None for an address of the family that pods do not have."""
    if not isinstance(entry, dict):
        raise CniError(Code.INVALID_CONFIG, f"{where} is not an object")
    # containerd writes `HostPort`, for readers in Go, to whom upper and lower case are one.
    entry = {str(key).lower(): value for key, value in entry.items()}
    numbers = []
    for key in ("hostPort", "containerPort"):
        number = entry.get(key.lower())
        if type(number) is not int or not 0 < number < 1 << 16:
            raise CniError(
                Code.INVALID_CONFIG, f"{where}.{key}: {repr(number)[:40]} is not a port (1-65535)"
            )
        numbers.append(number)
    protocol = entry.get("protocol") or "tcp"
    if not isinstance(protocol, str) or protocol.lower() not in _PROTOCOLS:
        raise CniError(
            Code.INVALID_CONFIG,
            f"{where}.protocol: {repr(protocol)[:40]} is none of {', '.join(_PROTOCOLS)}",
        )
    text = entry.get("hostip") or "0.0.0.0"  # noqa: S104  as the runtime says it
    try:
        # From a number an address would be made as well.
        address = ip_address(text if isinstance(text, str) else "")
    except ValueError:
        raise CniError(
            Code.INVALID_CONFIG, f"{where}.hostIP: {repr(text)[:80]} is no IP address"
        ) from None
    if not isinstance(address, IPv4Address):
        return None
    return HostPort(
        _PROTOCOLS[protocol.lower()], None if address.is_unspecified else address, *numbers
    )


def _check(key: str, value: str, where: str = "") -> None:
    if value and not _PATTERNS[key].fullmatch(value):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"{where}{key}: {value[:80]!r} does not match {_PATTERNS[key].pattern}",
        )


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
