"""Facts from files and programs of a host: kernel, nftables, Open vSwitch, CNI, certificates.

Whatever is read has a bound.
"""

import asyncio
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self

from cryptography import x509

from flows import names
from node_agent import appctl
from node_agent.checks.facts import (
    Certificate,
    Chain,
    CniFile,
    ControllerSession,
    Listener,
    OpenVSwitch,
)
from node_agent.json_stream import Parser
from wire.sentences import readable

LARGEST_FILE: Final = 4 << 20
"""Bytes of a file that are read. A kernel's list of modules has some 500 KiB."""
LARGEST_OUTPUT: Final = 4 << 20
"""Bytes of a program's output that are read; kube-proxy makes three chains for each endpoint."""
MOST_FILES: Final = 64
"""Files of the CNI directory, and certificates of a file."""
MOST_CHAINS: Final = 10_000
MOST_SESSIONS: Final = 64
PATIENCE: Final = 10.0
"""Seconds for a program, or a daemon's answer."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a host has its files."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    modules: Path = Path("/lib/modules")
    python: Path = Path("/usr/bin/python3")
    cni_conf: Path = Path("/etc/cni/net.d")
    ovsdb: Path = Path("/run/openvswitch/db.sock")
    ovs_run: Path = Path("/run/openvswitch")
    is_here: bool = True
    """Whether programs of the host can be run; else it is seen from a container."""

    @classmethod
    def below(cls, root: Path) -> Self:
        """Of a host whose root directory is mounted there."""
        return cls(
            modules=root / "lib/modules",
            python=root / "usr/bin/python3",
            cni_conf=root / "etc/cni/net.d",
            ovsdb=root / "run/openvswitch/db.sock",
            ovs_run=root / "run/openvswitch",
            is_here=False,
        )


class Notes(list[str]):
    """What could not be looked at, and why."""


def modules(places: Places, release: str, wanted: tuple[str, ...], notes: Notes) -> dict[str, bool]:
    """Whether the kernel has these modules: loaded, built in, or to be loaded."""
    found = {name: True for name in wanted if (places.sys / "module" / name).exists()}
    missing = [name for name in wanted if name not in found]
    if not missing:
        return found
    folder = places.modules / release
    lists = [_read(folder / name) for name in ("modules.dep", "modules.builtin")]
    if lists[0] is None and lists[1] is None:
        which = ", ".join(missing)
        notes.append(f"kernel modules {which}: they are not loaded, and {folder} cannot be read")
        return found
    for name in missing:
        path = re.compile(rf"(^|/){re.escape(name)}\.ko(\.\w+)?(:|$)", re.MULTILINE)
        found[name] = any(path.search(each or "") for each in lists)
    return found


def _read(path: Path) -> str | None:
    """The start of a text; None: it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(LARGEST_FILE).decode(errors="replace")
    except OSError:
        return None


# --- programs ---


async def output(*command: str) -> tuple[str, str]:
    """What a program prints, up to `LARGEST_OUTPUT`, and why it failed (empty: it did not).

    Raises `FileNotFoundError`.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None  # noqa: S101  it is a pipe
    assert process.stderr is not None  # noqa: S101
    text = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            while len(text) <= LARGEST_OUTPUT and (some := await process.stdout.read(1 << 16)):
                text += some
            if len(text) > LARGEST_OUTPUT:
                return text.decode(errors="replace"), ""
            said = (await process.stderr.read(4096)).decode(errors="replace").split()
            if await process.wait():
                return "", " ".join(said) or f"exit code {process.returncode}"
    except TimeoutError:
        return "", f"no answer within {PATIENCE:.0f} s"
    finally:
        if process.returncode is None:
            process.kill()
        # Also what is left in its pipes: asyncio takes a process with full pipes for running.
        await process.communicate()
    return text.decode(errors="replace"), ""


async def python_version(places: Places) -> tuple[int, ...]:
    """Of /usr/bin/python3; (): there is none. Where it cannot be run, by the name of the link."""
    if not places.is_here:
        return _linked_version(places.python)
    try:
        text, _ = await output(
            str(places.python), "-I", "-S", "-c", "import sys; print(*sys.version_info[:3])"
        )
    except OSError:
        return ()
    return tuple(int(each) for each in text.split()) if re.fullmatch(r"[\d\s]+", text) else ()


def _linked_version(path: Path) -> tuple[int, ...]:
    try:
        found = re.search(r"python(\d+)\.(\d+)$", str(path.readlink()))
    except OSError:
        return ()
    return (int(found[1]), int(found[2])) if found else ()


async def nft_version() -> str:
    """Empty: there is no such program."""
    try:
        text, _ = await output("nft", "--version")
    except OSError:
        return ""
    found = re.search(r"v(\d[\d.]*)", text)
    return found[1] if found else "0"


_TABLE: Final = re.compile(r"table (\w+) (\S+) \{")
_CHAIN: Final = re.compile(r"\s+chain (\S+) \{")
_HOOK: Final = re.compile(r"\s+type \w+ hook (\w+) .*?(?:policy (\w+);)?$")


async def nft_chains() -> tuple[list[Chain], list[tuple[str, str]], str]:
    """All chains and tables of this network namespace, and why they cannot be listed."""
    try:
        text, problem = await output("nft", "list", "chains")
    except OSError:
        return [], [], ""
    if problem:
        return [], [], problem
    chains, tables = await asyncio.to_thread(parse_chains, text)
    return [await _complete(chain) for chain in chains], tables, ""


def parse_chains(text: str) -> tuple[list[Chain], list[tuple[str, str]]]:
    """Of the output of `nft list chains`."""
    chains: list[Chain] = []
    tables: list[tuple[str, str]] = []
    for line in text.splitlines():
        if len(chains) >= MOST_CHAINS:
            break
        if found := _TABLE.match(line):
            tables.append((found[1], found[2]))
        elif tables and (found := _CHAIN.match(line)):
            chains.append(Chain(*tables[-1], found[1]))
        elif chains and (found := _HOOK.match(line)):
            last = chains[-1]
            chains[-1] = Chain(last.family, last.table, last.name, found[1], found[2] or "accept")
    return chains, tables


async def _complete(chain: Chain) -> Chain:
    """With what its rules say, where that matters."""
    if (chain.hook, chain.policy) != ("forward", "drop"):
        return chain
    text, _ = await output("nft", "list", "table", chain.family, chain.table)
    return Chain(
        chain.family, chain.table, chain.name, chain.hook, chain.policy,
        names_gateway=f'"{names.GATEWAY_PORT}"' in text,
    )  # fmt: skip


async def legacy_chains(places: Places, notes: Notes) -> list[Chain]:
    """Those of iptables-legacy, which nft does not show."""
    tables = (_read(places.proc / "thread-self" / "net" / "ip_tables_names") or "").split()
    if not tables:
        return []
    try:
        text, problem = await output("iptables-legacy-save")
    except OSError:
        problem = "the program iptables-legacy-save is not here"
        text = ""
    if problem:
        notes.append(f"the chains of iptables-legacy (tables {', '.join(tables)}): {problem}")
    return list(islice(_legacy(text), MOST_CHAINS))


def _legacy(text: str) -> Iterator[Chain]:
    table = ""
    gateway = f" {names.GATEWAY_PORT} " in text
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            name, policy, *_ = (*line[1:].split(), "")
            hook = "forward" if (table, name) == ("filter", "FORWARD") else ""
            yield Chain("ip", table, name, hook, policy.lower(), "iptables-legacy", gateway)


# --- Open vSwitch ---


async def open_vswitch(places: Places) -> OpenVSwitch:
    """What the two daemons say."""
    database = switch = version = owner = ""
    sessions: tuple[ControllerSession, ...] = ()
    try:
        roots, bridges, ports, controllers = await _asked(places.ovsdb)
        owner = _owner(roots, bridges, ports)
        sessions = tuple(_sessions(controllers))
    except (OSError, ValueError, TimeoutError) as error:
        database = _reason(error)
    try:
        async with asyncio.timeout(PATIENCE):
            text = await appctl.call(places.ovs_run, "version")
    except (appctl.AppctlError, TimeoutError) as error:
        # Of an AppctlError the cause is shorter, and says all.
        switch = _reason(error.__cause__ or error)
    else:
        found = re.search(r"\(Open vSwitch\) (\S+)", text)
        version = found[1] if found else ""
    return OpenVSwitch(database, switch, version, owner, sessions)


async def _asked(socket: Path) -> list[Any]:
    """Rows of Open_vSwitch, Bridge, Port and Controller, as far as needed. By RFC 7047, 4.1.3."""
    selects = [
        {"op": "select", "table": "Open_vSwitch", "columns": ["external_ids"], "where": []},
        {
            "op": "select",
            "table": "Bridge",
            "columns": ["external_ids", "ports"],
            "where": [["name", "==", names.INTEGRATION_BRIDGE]],
        },
        {"op": "select", "table": "Port", "columns": ["_uuid", "name"], "where": []},
        {
            "op": "select",
            "table": "Controller",
            "columns": ["target", "is_connected", "status", "external_ids"],
            "where": [],
        },
    ]
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_unix_connection(socket)
        try:
            request = {"method": "transact", "params": ["Open_vSwitch", *selects], "id": 0}
            writer.write(json.dumps(request).encode())
            parser, size = Parser(), 0
            while not parser.is_done():
                some = await reader.read(1 << 16)
                size += len(some)
                if not some or size > LARGEST_OUTPUT:
                    raise ValueError("its answer is cut off" if not some else "it says too much")
                parser.feed(some.decode("utf-8", "replace"))
            reply = parser.finish()
        finally:
            writer.close()
    if not isinstance(reply, dict) or not isinstance(reply.get("result"), list):
        raise ConnectionError(f"it refuses: {str(reply)[:200]}")
    return [each.get("rows", []) for each in reply["result"]]


def _sessions(controllers: list[Any]) -> Iterator[ControllerSession]:
    """The connections of the switch that the agent has set up."""
    for row in controllers[:MOST_SESSIONS]:
        if dict(row["external_ids"][1]).get("sluice") == "controller":
            status = dict(row["status"][1])
            why = status.get("last_error") or status.get("state", "")
            yield ControllerSession(row["target"], row["is_connected"], readable(why))


def _owner(roots: list[Any], bridges: list[Any], ports: list[Any]) -> str:
    """To whom `br-int` belongs, if not to us: as `node_agent.bridge` decides it."""
    root = dict(roots[0]["external_ids"][1]) if roots else {}
    is_ovns = "ovn-remote" in root and root.get("ovn-bridge", "br-int") == names.INTEGRATION_BRIDGE
    if not bridges:
        return "OVN" if is_ovns else ""
    marks = dict(bridges[0]["external_ids"][1])
    if is_ovns or any(key.startswith(("ovn-", "ct-zone-")) for key in marks):
        return "OVN"
    given = bridges[0]["ports"]
    ids = {each[1] for each in (given[1] if given[0] == "set" else [given])}
    found = {port["name"] for port in ports if port["_uuid"][1] in ids}
    others = sorted(
        name for name in found - {names.INTEGRATION_BRIDGE} if not names.is_attachment_port(name)
    )
    if others and found.isdisjoint({names.GATEWAY_PORT, names.TUNNEL_PORT}):
        return f"another system (it has the port {others[0]})"
    return ""


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE:.0f} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


# --- files ---


def cni_files(places: Places, notes: Notes) -> list[CniFile]:
    """What a runtime would read: by libcni, *.conf, *.conflist and *.json."""
    try:
        paths = sorted(
            path
            for path in islice(places.cni_conf.iterdir(), 1000)
            if path.suffix in {".conf", ".conflist", ".json"} and not path.name.startswith(".")
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.append(f"{places.cni_conf}: {error.strerror}")
        return []
    return [CniFile(str(path), _plugins(_read(path))) for path in paths[:MOST_FILES]]


def _plugins(text: str | None) -> tuple[str, ...]:
    try:
        content = json.loads(text or "")
        plugins = content.get("plugins", [content])
        return tuple(str(each["type"])[:64] for each in plugins[:16])
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return ()


def certificates(path: Path, notes: Notes) -> list[Certificate]:
    """Those of a PEM file, in its order."""
    text = _read(path)
    if text is None:
        notes.append(f"certificate {path}: it cannot be read")
        return []
    try:
        found = x509.load_pem_x509_certificates(text.encode())[:MOST_FILES]
    except ValueError:
        notes.append(f"certificate {path}: it holds none")
        return []
    return [
        Certificate(
            str(path) if len(found) == 1 else f"{path} (certificate {number})",
            each.not_valid_before_utc,
            each.not_valid_after_utc,
            _is_ca(each),
        )
        for number, each in enumerate(found, 1)
    ]


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


_LISTENING: Final = {"tcp": "0A", "udp": "07"}
"""The states in /proc/net: TCP_LISTEN, and TCP_CLOSE, which a UDP socket without a peer has."""


def listeners(places: Places) -> frozenset[Listener]:
    """The ports of this network namespace at which somebody listens."""
    found: set[Listener] = set()
    for name, protocol in (("tcp", "TCP"), ("tcp6", "TCP"), ("udp", "UDP"), ("udp6", "UDP")):
        text = _read(places.proc / "thread-self" / "net" / name) or ""
        for line in text.splitlines()[1:]:
            words = line.split()
            if len(words) > 3 and words[3] == _LISTENING[name[:3]]:
                # Of an address in hexadecimal, `:`, and the port.
                _, _, port = words[1].rpartition(":")
                made: Any = protocol
                found.add(Listener(made, int(port, 16)))
    return frozenset(found)
