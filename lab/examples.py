"""Runs the commands that the documentation shows, in a lab, and writes down what they print.

In the pages `PAGES`, each block that begins with ```` ```console ```` holds commands (`$ ...`) with
their output. The lab holds what `docs/examples/shop.yaml` describes. `make examples` runs all
commands again and puts their output in place of the old one; with `--check` nothing is written, and
the exit code is 1 if a page shows something else than the commands print now. Numbers, addresses of
memory and names by chance may differ; of a block that begins with ```` ```console live ```` only
the first line is compared, because it shows traffic.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
import yaml

from lab import Lab
from lab.processes import running

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = ("docs/commands.md", "docs/reach.md")
SCENE: Final = ROOT / "docs/examples"
NODES: Final = {"shop/front": "node1", "shop/web-0": "node2", "shop/web-1": "node1",
                "ops/prometheus": "node2"}  # fmt: skip
LABELS: Final = {
    "shop/front": {"app": "front"},
    "shop/web-0": {"app": "web"},
    "shop/web-1": {"app": "web"},
    "ops/prometheus": {"app": "prometheus"},
}
SERVERS: Final = ("shop/web-0", "shop/web-1")
LONGEST: Final = 120.0
"""Seconds that a command may take."""
_BLOCK: Final = re.compile(r"^```console( live)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEAD: Final = re.compile(r" \| head -(\d+)$")
_CHANCE: Final = (
    (re.compile(r"0x[0-9a-f]+"), "H"),
    (re.compile(r"\bp[a-z2-7]{14}\b"), "P"),
    (re.compile(r"\d+(?:[.,:]\d+)*"), "N"),
    (re.compile(r"\s+"), " "),
)

SERVER: Final = """
import http.server, socketserver
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): ...
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "3"); self.end_headers()
        self.wfile.write(b"ok\\n")
print("ready", flush=True)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
Server(("", 8080), Quiet).serve_forever()
"""

TRAFFIC: Final = """
import socket, sys, time
print("ready", flush=True)
while True:
    for host, port in (("10.96.0.10", 80), (sys.argv[1], 22)):
        with socket.socket() as client:
            client.settimeout(0.2)
            try:
                client.connect((host, port))
                client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
                client.recv(1000)
            except OSError:
                pass
    time.sleep(0.1)
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 if a page is out of date.")
@click.option("--name", default="examples", show_default=True, help="The name of the lab.")
def main(check: bool, name: str) -> None:
    """Run the commands that the documentation shows, and write down what they print."""
    lab = Lab(name)
    with lab.running(nodes=2), ExitStack() as stack:
        # Commands may leave files behind.
        scene = Path(stack.enter_context(tempfile.TemporaryDirectory()), "scene")
        shutil.copytree(SCENE, scene)
        _set_up(lab, scene, stack)
        differences = [
            text for page in PAGES for text in _page(lab, scene, ROOT / page, check=check)
        ]
    for each in differences:
        click.echo(each, err=True)
    sys.exit(1 if differences else 0)


def _set_up(lab: Lab, scene: Path, stack: ExitStack) -> None:
    for pod, node in NODES.items():
        namespace, name = pod.split("/")
        lab.pod_add(namespace, name, node, LABELS[pod])
    addresses = {pod: str(lab.pod(*pod.split("/")).address) for pod in NODES}
    text = (scene / "shop.yaml").read_text()
    for pod, address in addresses.items():
        text = text.replace(f"${{{pod}}}", address)
    for manifest in yaml.safe_load_all(text):
        lab.apply(manifest)
    for pod in SERVERS:
        server = stack.enter_context(running(lab.command(pod, [sys.executable, "-c", SERVER])))
        assert server.line() == "ready"  # noqa: S101
    client = [sys.executable, "-c", TRAFFIC, addresses["shop/web-0"]]
    traffic = stack.enter_context(running(lab.command("shop/front", client)))
    assert traffic.line() == "ready"  # noqa: S101
    _run(lab, scene, "sluice status --wait --timeout 60")
    _run(lab, scene, "sluice wait networkpolicy/shop/web --timeout 60")
    # Until the first counters differ from zero.
    time.sleep(6)


def _page(lab: Lab, scene: Path, page: Path, *, check: bool) -> Iterator[str]:
    """Run a page's commands; yield how it differs, or write it."""
    old = page.read_text()
    found: list[str] = []

    def again(match: re.Match[str]) -> str:
        is_live, body = bool(match[1]), match[2]
        new = "\n".join(_commands(lab, scene, body)) + "\n"
        found.extend(_compared(page, body, new, first_lines=is_live))
        return f"```console{match[1] or ''}\n{new}```"

    new = _BLOCK.sub(again, old)
    if check:
        yield from found
    elif new != old:
        page.write_text(new)
        click.echo(f"{page.relative_to(ROOT)}: written")


def _commands(lab: Lab, scene: Path, body: str) -> Iterator[str]:
    for line in body.splitlines():
        if line.startswith("$ "):
            yield line
            said = _run(lab, scene, line[2:]).rstrip("\n")
            if said:
                yield said


def _compared(page: Path, old: str, new: str, *, first_lines: bool) -> Iterator[str]:
    for before, after in zip(_parts(old), _parts(new), strict=True):
        one, other = (each[:2] if first_lines else each for each in (before, after))
        if _plain(one) != _plain(other):
            yield f"{page.name}: {before[0]}: now it prints\n" + "\n".join(after[1:])


def _parts(body: str) -> list[list[str]]:
    """Each command, with the lines of its output."""
    parts: list[list[str]] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            parts.append([])
        parts[-1].append(line)
    return parts


def _plain(lines: Iterable[str]) -> str:
    text = "\n".join(lines).strip()
    for pattern, word in _CHANCE:
        text = pattern.sub(word, text)
    return text


def _run(lab: Lab, scene: Path, command: str) -> str:
    """What a command prints, on both outputs."""
    head = _HEAD.search(command)
    words = shlex.split(_HEAD.sub("", command))
    if words[:3] == ["kubectl", "apply", "-f"]:
        return "".join(_apply(lab, yaml.safe_load_all((scene / words[3]).read_text())))
    if words[:2] == ["kubectl", "sluice"]:
        words = words[1:]
    assert words[0] == "sluice", command  # noqa: S101  the pages are ours
    offline = ["--lab", lab.name] if "--from" not in words else []
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *words[1:], *offline],
        cwd=scene, capture_output=True, text=True, check=False, timeout=LONGEST,
    )  # fmt: skip
    said = re.sub(r" +$", "", done.stderr + done.stdout, flags=re.MULTILINE)
    if head:
        lines = said.splitlines()
        most = int(head[1])
        said = "\n".join(lines[:most] + ["..."] * (len(lines) > most))
    return said


def _apply(lab: Lab, manifests: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for manifest in manifests:
        lab.apply(manifest)
        group = manifest["apiVersion"].partition("/")[0]
        name = manifest["metadata"]["name"]
        yield f"{manifest['kind'].lower()}.{group}/{name} configured\n"


if __name__ == "__main__":
    main()
