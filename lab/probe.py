"""A program in a pod that finds out whether its packets and bytes arrive; see `lab.traffic`.

It is run by its path and uses the standard library alone, so that many start fast. Each verb
prints `ready` when traffic flows, continues until its stdin ends, and then prints its result as
JSON. Times are those of CLOCK_MONOTONIC, which all processes of a machine share.

    python probe.py ping ADDRESS INTERVAL
    python probe.py send ADDRESS PORT
    python probe.py receive PORT
"""

import contextlib
import hashlib
import json
import os
import select
import socket
import struct
import sys
import time
from array import array

LONGEST_ROUND_TRIP = 10.0
"""Seconds after which an answer counts as lost."""
BLOCK = 1 << 13
PACE = 0.01
"""Seconds from block to block. The userspace datapath takes packets off a socket whose buffer holds
some 90 of them: bursts beyond that are lost whenever it gets no processor for a moment."""

_ECHO_REQUEST, _ECHO_REPLY = 8, 0
_SO_MEMINFO, _DROPS = 55, 8  # asm-generic/socket.h, and SK_MEMINFO_DROPS of linux/sock_diag.h
_HEADER = struct.Struct("!BBHHHQ")  # type, code, checksum, identifier, sequence, our own counter


def ping(address: str, interval: float) -> dict[str, object]:
    """Send echo requests at a fixed pace, with or without answers."""
    identifier = os.getpid() & 0xFFFF
    sent = array("d")
    answered = bytearray()
    duplicates = 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.setblocking(False)
        raw.connect((address, 0))
        due = time.monotonic()
        last_due = None
        while True:
            now = time.monotonic()
            if last_due is None and now >= due:
                sent.append(now)
                answered.append(0)
                with contextlib.suppress(OSError):  # no route, no buffer: lost like any other
                    raw.send(_echo_request(identifier, len(sent) - 1))
                due = max(due + interval, now)
            elif last_due is not None and (all(answered) or now >= last_due):
                found = {"duplicates": duplicates, "unread": _unread(raw)}
                return _outages(sent, answered) | found
            wanted = [raw] if last_due is not None else [raw, sys.stdin]
            until = due if last_due is None else last_due
            readable, _, _ = select.select(wanted, [], [], max(0, until - time.monotonic()))
            if sys.stdin in readable:
                last_due = time.monotonic() + LONGEST_ROUND_TRIP
            while (number := _answer(raw, identifier)) is not None:
                if number < len(answered):
                    duplicates += answered[number]
                    if not any(answered):
                        say("ready")
                    answered[number] = 1


def _echo_request(identifier: int, number: int) -> bytes:
    sequence = number & 0xFFFF
    bare = _HEADER.pack(_ECHO_REQUEST, 0, 0, identifier, sequence, number)
    total = sum(struct.unpack("!8H", bare))
    total = (total & 0xFFFF) + (total >> 16)
    total += total >> 16
    return _HEADER.pack(_ECHO_REQUEST, 0, ~total & 0xFFFF, identifier, sequence, number)


def _answer(raw: socket.socket, identifier: int) -> int | None:
    """The number of the next request that was answered; None when there is nothing to read."""
    while True:
        try:
            packet = raw.recv(2048)
        except BlockingIOError:
            return None
        except OSError:  # an ICMP error of an earlier packet
            continue
        icmp = packet[(packet[0] & 15) * 4 :]
        if len(icmp) >= _HEADER.size:
            kind, _, _, found, _, number = _HEADER.unpack_from(icmp)
            if (kind, found) == (_ECHO_REPLY, identifier):
                return int(number)


def _unread(raw: socket.socket) -> int:
    """Packets that the kernel has dropped because nobody read this socket in time."""
    return int(struct.unpack_from("9I", raw.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[_DROPS])


def _outages(sent: "array[float]", answered: bytearray) -> dict[str, object]:
    """Runs of lost packets: when the first and last of them were sent, and the next that got on."""
    outages: list[dict[str, object]] = []
    run: list[float] = []
    for moment, arrived in zip([*sent, None], [*answered, 1], strict=True):
        if not arrived and moment is not None:
            run.append(moment)
        elif run:
            outages.append({"first": run[0], "last": run[-1], "over": moment, "lost": len(run)})
            run = []
    return {"sent": len(sent), "lost": answered.count(0), "outages": outages}


def send(address: str, port: int) -> dict[str, object]:
    """Random bytes, at a steady pace."""
    digest, size = hashlib.sha256(), 0
    with socket.create_connection((address, port), timeout=30) as connection:
        connection.settimeout(None)
        say("ready")
        while not select.select([sys.stdin], [], [], PACE)[0]:
            block = os.urandom(BLOCK)
            connection.sendall(block)
            digest.update(block)
            size += len(block)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # until the other side has read everything
        return {"bytes": size, "sha256": digest.hexdigest()}


def receive(port: int) -> dict[str, object]:
    """All bytes of one connection."""
    digest, size = hashlib.sha256(), 0
    with socket.create_server(("", port)) as server:
        say("ready")
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(1 << 20):
                digest.update(data)
                size += len(data)
    return {"bytes": size, "sha256": digest.hexdigest()}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(verb: str, *arguments: str) -> None:
    match verb:
        case "ping":
            report = ping(arguments[0], float(arguments[1]))
        case "send":
            report = send(arguments[0], int(arguments[1]))
        case "receive":
            report = receive(int(arguments[0]))
        case _:
            sys.exit(f"no such verb: {verb}")
    say(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
