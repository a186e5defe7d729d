#!/usr/bin/python3 -IS
"""The CNI plugin `sluice`: sends its environment and stdin to the node agent, prints the answer.

The runtime executes it once per pod and operation, so its cost is the start-up time: it imports
only built-in modules unless an error occurs. It runs on Python 3.9 or later and needs no other
file.

The request: each CNI_* variable as KEY=VALUE and a NUL byte, one more NUL byte, the bytes of stdin,
end of stream. The answer: one byte, '0' for success or '1' for failure, then the output that the
CNI specification requires on stdout.
"""

import _socket
import posix
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

DEFAULT_SOCKET = b"/run/sluice/cni.sock"
VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
# kubelet gives a sandbox 4 minutes; containerd waits for STATUS without a limit of its own.
TIMEOUT = 120.0
STATUS_TIMEOUT = 5.0

# Error codes of the CNI specification 1.1.0, "Error".
INVALID_ENVIRONMENT = 4
DECODE = 6
INVALID_CONFIG = 7
TRY_AGAIN = 11
NOT_AVAILABLE = 50  # STATUS: no ADD can be served


class NoAnswerError(Exception):
    """The agent cannot be reached, or closed the connection without an answer."""


def main() -> None:
    """Execute CNI_COMMAND, and exit with 0 or 1."""
    command = posix.environ.get(b"CNI_COMMAND", b"")
    conf = read_stdin()
    if command == b"VERSION":
        version(conf)
    if not command:
        fail(INVALID_ENVIRONMENT, "CNI_COMMAND is not set", "a container runtime runs this", conf)
    path = socket_path(conf)
    try:
        answer = ask(path, request(conf), STATUS_TIMEOUT if command == b"STATUS" else TIMEOUT)
    except (OSError, NoAnswerError) as error:
        decode(conf)
        fail(
            NOT_AVAILABLE if command == b"STATUS" else TRY_AGAIN,
            "the Sluice node agent does not answer at " + path.decode(errors="replace"),
            f"{getattr(error, 'strerror', None) or error}; is the agent of this node running, "
            'and is "socket" in the CNI configuration its socket?',
            conf,
        )
    write_all(answer[1:])
    sys.exit(0 if answer[:1] == b"0" else 1)


def request(conf: bytes) -> bytes:
    """What goes to the agent."""
    variables = [
        key + b"=" + value + b"\0"
        for key, value in posix.environ.items()
        if key.startswith(b"CNI_")
    ]
    return b"".join(variables) + b"\0" + conf


def socket_path(conf: bytes) -> bytes:
    """The agent's socket: the configuration's key "socket", or the default.

    Read without a JSON parser where the key stands once and its value has no escapes: importing
    one doubles the time that this program takes.
    """
    key = b'"socket"'
    count = conf.count(key)
    if count == 0:
        return DEFAULT_SOCKET
    rest = conf[conf.find(key) + len(key) :].lstrip()
    if count == 1 and rest[:1] == b":":
        rest = rest[1:].lstrip()
        value = rest[1:].partition(b'"')[0]
        if rest[:1] == b'"' and b"\\" not in value:
            return value
    found = decode(conf).get("socket")
    if not isinstance(found, str):
        return DEFAULT_SOCKET
    try:
        path = found.encode()
    except UnicodeEncodeError as error:
        fail(INVALID_CONFIG, "stdin: socket: the value cannot be a path", str(error), conf)
    if b"\0" in path:
        fail(INVALID_CONFIG, "stdin: socket: the value cannot be a path", "it holds a NUL", conf)
    return path


def ask(path: bytes, message: bytes, timeout: float) -> bytes:
    """Send `message` and return the whole answer. Raises `OSError` and `NoAnswerError`."""
    deadline = time.monotonic() + timeout
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.settimeout(timeout)
    connection.connect(path)
    connection.sendall(message)
    connection.shutdown(_socket.SHUT_WR)
    chunks: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise NoAnswerError(f"no answer within {timeout:.0f} seconds")
        connection.settimeout(left)
        chunk = connection.recv(65536)
        if not chunk:
            break
        chunks.append(chunk)
    answer = b"".join(chunks)
    if answer[:1] not in (b"0", b"1"):
        raise NoAnswerError("it hung up without an answer")
    return answer


def read_stdin() -> bytes:
    """All of stdin; nothing where it is closed."""
    chunks: list[bytes] = []
    while True:
        try:
            chunk = posix.read(0, 65536)
        except OSError:
            chunk = b""
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


def write_all(data: bytes) -> None:
    """All of `data` to stdout."""
    while data:
        data = data[posix.write(1, data) :]


def version(conf: bytes) -> "NoReturn":
    """Answer VERSION, which needs no agent."""
    given = decode(conf).get("cniVersion")
    reply(
        {
            "cniVersion": given if given in VERSIONS else VERSIONS[-1],
            "supportedVersions": VERSIONS,
        },
        0,
    )


def decode(conf: bytes) -> "dict[str, object]":
    """Stdin as a JSON object; anything else ends in error 6."""
    import json  # noqa: PLC0415  only off the path that is taken for every pod

    try:
        value = json.loads(conf)
    except (ValueError, RecursionError) as error:
        fail(DECODE, "stdin: the network configuration is not JSON", str(error), b"")
    if not isinstance(value, dict):
        fail(DECODE, "stdin: the network configuration is not a JSON object", conf[:80], b"")
    return value


def fail(code: int, message: str, details: object, conf: bytes) -> "NoReturn":
    """Print a CNI error in the version of the configuration, as far as it can be told."""
    given = decode(conf).get("cniVersion") if conf else None
    reply(
        {
            "cniVersion": given if given in VERSIONS else VERSIONS[-1],
            "code": code,
            "msg": message,
            "details": details.decode(errors="replace") if isinstance(details, bytes) else details,
        },
        1,
    )


def reply(value: "dict[str, object]", status: int) -> "NoReturn":
    """Print `value` as JSON and leave."""
    import json  # noqa: PLC0415

    write_all(json.dumps(value).encode() + b"\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
