"""`sluice capture`: the packets of a pod's port, as a pcap file."""

import struct
import sys
from pathlib import Path

import click

from cli.completions import PODS
from cli.controller import Controller, RequestError, controller_options, download
from wire.questions import MAX_CAPTURE_PACKETS, MAX_CAPTURE_SECONDS
from wire.viewing import CAPTURE, CAPTURER


@click.command("capture", short_help="Capture the packets of a pod, as a pcap file.")
@click.argument("pod", shell_complete=PODS)
@click.option("--filter", "text", default="", metavar="EXPRESSION",
              help="Only these packets, in the language of tcpdump: pcap-filter(7).")  # fmt: skip
@click.option(
    "--packets",
    type=click.IntRange(1, MAX_CAPTURE_PACKETS),
    default=100,
    show_default=True,
    help="End after so many packets.",
)
@click.option(
    "--seconds",
    type=click.IntRange(1, MAX_CAPTURE_SECONDS),
    default=10,
    show_default=True,
    help="End after so many seconds.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file.  [default: standard output, for `tcpdump -r -` or Wireshark]",
)
@controller_options
def capture(
    pod: str, text: str, packets: int, seconds: int, output: Path | None, controller: Controller
) -> None:
    """Capture the packets of POD (NAMESPACE/NAME) on its node, as a pcap file.

    Of each packet 256 bytes are kept, of all packets together 150 KB. A packet shows what pods say
    to each other, so this needs more than the right to look: the right to create a token of the
    ServiceAccount sluice-capturer.

    \b
    What does the pod front ask the DNS server, in the next ten seconds?
      sluice capture shop/front --filter "udp port 53" | tcpdump -n -r -
    Its next thousand packets, for Wireshark:
      sluice capture shop/front --packets 1000 --seconds 30 -o front.pcap
    """  # noqa: D301  click's mark for lines that are to stay as they are
    if output is None and sys.stdout.isatty():
        raise click.UsageError("a pcap file is not for a terminal: give --output, or a pipe")
    query = {"pod": pod, "packets": str(packets), "seconds": str(seconds), "filter": text}
    content, headers = download(controller, CAPTURE, query, CAPTURER)
    if output is None:
        sys.stdout.buffer.write(content)
    else:
        try:
            output.write_bytes(content)
        except OSError as error:
            raise RequestError(f"{output} cannot be written: {error.strerror}") from error
    cut = "; cut off at 150 KB" if headers.get("Sluice-Cut") else ""
    click.echo(f"{_count(content):,} packets{cut}", err=True)


def _count(content: bytes) -> int:
    """The packets in a pcap file (draft-ietf-opsawg-pcap, section 5)."""
    order = "<" if content[:1] in (b"\xd4", b"\x4d") else ">"
    at, count = 24, 0
    while at + 16 <= len(content):
        (length,) = struct.unpack_from(f"{order}I", content, at + 8)
        at += 16 + int(length)
        count += at <= len(content)
    return count
