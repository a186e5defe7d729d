"""Run inside a pod's namespace: sends crafted frames, or waits for what arrives.

`packets.py send IFACE COUNT HEX ...` puts whole frames on the wire, each as often; `packets.py
listen IFACE HEX` prints the frames that arrive, in hex, until one holds these bytes.
"""

import socket
import sys

PATIENCE = 60.0
"""Seconds without the last frame after which something is wrong."""


def send(interface: str, count: int, *frames: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        for frame in frames:
            for _ in range(count):
                raw.send(frame)


def listen(interface: str, last: bytes) -> None:
    every_protocol = 3  # ETH_P_ALL
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every_protocol)) as raw:
        raw.bind((interface, every_protocol))
        raw.settimeout(PATIENCE)
        print("listening", flush=True)
        while True:
            frame, address = raw.recvfrom(65535)
            if address[2] == socket.PACKET_OUTGOING:
                continue
            print(frame.hex(), flush=True)
            if last in frame:
                return


if __name__ == "__main__":
    verb, interface, *rest = sys.argv[1:]
    if verb == "send":
        send(interface, int(rest[0]), *map(bytes.fromhex, rest[1:]))
    else:
        listen(interface, bytes.fromhex(rest[0]))
