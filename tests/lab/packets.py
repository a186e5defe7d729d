"""Send crafted frames in a pod's namespace, or print the frames that arrive.

`packets.py send IFACE COUNT HEX ...` puts whole frames on the wire, each as often; `packets.py
listen IFACE HEX` prints the frames that arrive, in hex, until one holds these bytes.
"""

import os
import socket
import sys
import time

PATIENCE = 60.0
"""Seconds after which the last frame must have arrived."""
APART = 0.05 * float(os.environ.get("SLUICE_PATIENCE") or 1)
"""Seconds between unlike frames. In the kernel's datapath the first packets of two flows wait for
ovs-vswitchd side by side, and the later one may come through first."""


def send(interface: str, count: int, *frames: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        for number, frame in enumerate(frames):
            time.sleep(APART if number else 0)
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
