"""Run inside a pod's namespace: sends crafted frames, or waits for what arrives.

`python -m tests.lab.packets send IFACE HEX COUNT` puts whole frames on the wire;
`python -m tests.lab.packets listen IFACE SECONDS` prints the frames that arrive, in hex.
"""

import socket
import sys
import time


def send(interface: str, frame: bytes, count: int) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        for _ in range(count):
            raw.send(frame)


def listen(interface: str, seconds: float) -> None:
    every_protocol = 3  # ETH_P_ALL
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every_protocol)) as raw:
        raw.bind((interface, every_protocol))
        print("listening", flush=True)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            raw.settimeout(left)
            try:
                frame, address = raw.recvfrom(65535)
            except TimeoutError:
                return
            if address[2] != socket.PACKET_OUTGOING:
                print(frame.hex(), flush=True)


if __name__ == "__main__":
    verb, interface, *rest = sys.argv[1:]
    if verb == "send":
        send(interface, bytes.fromhex(rest[0]), int(rest[1]))
    else:
        listen(interface, float(rest[0]))
