"""`sluice bundle`, and `--from`: what commands answer without a controller."""

import io
import json
import re
import tarfile
import tracemalloc
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from click.testing import CliRunner, Result

from cli import bundle_file
from cli.main import main
from cli.offline import read_source
from controller.drop_reasons import NO_ROUTE, drop_reason
from controller.reports.flows import FlowReport, FlowRow
from settings import ClusterSettings
from tests.cli.serving import serving
from tests.cli.test_policy import MANIFESTS

SETTINGS = ClusterSettings(IPv4Network("10.244.0.0/16"), IPv4Network("10.96.0.0/12"))
SECRETS = """
---
apiVersion: v1
kind: Pod
metadata:
  name: teller
  namespace: shop
  annotations: {kubectl.kubernetes.io/last-applied-configuration: s3cret-annotation}
spec:
  nodeName: n1
  serviceAccountName: s3cret-account
  containers:
  - name: web
    image: s3cret-image
    command: [s3cret-command]
    env: [{name: PASSWORD, value: s3cret-environment}]
    ports: [{name: http, containerPort: 8080}]
  volumes: [{name: v, secret: {secretName: s3cret-volume}}]
status: {podIP: 10.244.1.9, message: s3cret-message}
---
apiVersion: v1
kind: Secret
metadata: {name: key, namespace: shop}
data: {key: s3cret-data}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop, annotations: {a: s3cret-service}}
spec: {clusterIP: 10.96.0.11, selector: {app: s3cret-selector}, ports: [{port: 80}]}
"""


def sluice(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, words)])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    with serving(folder / "api.sock", MANIFESTS + SECRETS, SETTINGS):
        done = sluice(
            "bundle", "--socket", folder / "api.sock", "--no-check", "-o", folder / "b.tar.zst"
        )
    assert done.exit_code == 0, done.output
    assert "missing: flows of n1: the switch of Node n1 is not connected" in done.output
    return folder / "b.tar.zst"


def content_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(plain(path))) as archive:
        return {
            entry.name: file.read()
            for entry in archive
            if (file := archive.extractfile(entry)) is not None
        }


def plain(path: Path) -> bytes:
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        return stream.read()


def test_bundle_has_no_secrets_and_is_its_owners_alone(bundle: Path) -> None:
    members = content_of(bundle)
    assert members.keys() == {
        f"sluice-bundle/{name}"
        for name in ("bundle.json", "cluster.jsonl", "status.json", "settings.json", "metrics.txt")
    }
    assert b"teller" in members["sluice-bundle/cluster.jsonl"]
    assert b"s3cret" not in b"".join(members.values())
    assert bundle.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in bundle.parent.iterdir() if each.name.startswith(".")] == []


def test_what_was_written_is_told_to_scripts(tmp_path: Path) -> None:
    with serving(tmp_path / "api.sock", MANIFESTS, SETTINGS):
        done = sluice(
            "bundle", "--socket", tmp_path / "api.sock", "--json", "-o", tmp_path / "b.tar.zst"
        )
    said = json.loads(done.stdout)
    assert said["bytes"] == (tmp_path / "b.tar.zst").stat().st_size
    assert set(said["content"]["missing"]) == {"flows of n1", "flows of n2"}


def test_bundle_replaces_no_file(bundle: Path) -> None:
    before = bundle.read_bytes()
    done = sluice("bundle", "--socket", bundle.parent / "api.sock", "-o", bundle)
    assert done.exit_code == 2
    assert "is there already" in done.output
    with pytest.raises(FileExistsError):
        bundle_file.write(bundle, {})
    assert bundle.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["services"],
        ["services", "shop/web"],
        ["services", "shop/web", "--node", "n1"],
        ["policy", "192.0.2.7", "n1", "80"],
        ["explain", "svc/shop/web"],
        ["explain", "10.96.0.10"],
        ["explain", "networkpolicy/shop/web"],
        ["status"],
    ],
)
def test_bundle_answers_as_the_controller_did(bundle: Path, words: list[str]) -> None:
    path = bundle.parent / "again.sock"
    path.unlink(missing_ok=True)
    with serving(path, MANIFESTS + SECRETS, SETTINGS):
        asked = sluice(*words, "--json", "--socket", path)
    for offline in (
        sluice("--from", bundle, *words, "--json"),
        sluice(*words, "--json", "--from", bundle),
    ):
        assert offline.exit_code == asked.exit_code
        assert _without_times(offline.stdout) == _without_times(asked.stdout)
    assert json.loads(asked.stdout)


def _without_times(text: str) -> str:
    """What a report says of this moment: the bundle's is another one."""
    return re.sub(r'"(provenAge|lag|since)": [0-9.]+', r'"\1": 0', text)


def test_bundle_that_was_unpacked_answers_too(bundle: Path, tmp_path: Path) -> None:
    for name, content in content_of(bundle).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    packed, unpacked = (
        sluice("--from", path, "services", "--json")
        for path in (bundle, tmp_path / bundle_file.FOLDER)
    )
    assert packed.output == unpacked.output


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    (tmp_path / "shop.yaml").write_text(MANIFESTS)
    return tmp_path


def test_manifests_answer_every_verb(manifests: Path) -> None:
    for words in (
        ["services", "shop/web"],
        ["flows", "n1", "--pod", "shop/web-0"],
        ["flows", "n1", "--service", "shop/web", "--raw"],
        ["policy", "shop/web-0"],
        ["explain", "shop/web-0"],
        ["trace", "shop/front-6b7f-x2x4z", "svc/shop/web", "--reply"],
        ["what-if", "-f", str(manifests), "--delete"],
    ):
        done = sluice("--from", manifests, *words)
        assert done.exit_code == 0, (words, done.output)
        assert "Traceback" not in done.output
    done = sluice("--from", manifests, "status")
    assert "switches: 0 of 2 in sync" in done.output


def test_flows_of_manifests_are_said_to_be_desired_only(manifests: Path) -> None:
    done = sluice("--from", manifests, "flows", "n1", "--table", "Classifier", "--json")
    rows = json.loads(done.stdout)["flows"]
    assert {row["state"] for row in rows} == {"desired"}
    assert {row["table"] for row in rows} == {"Classifier"}


def test_from_goes_with_no_controller(bundle: Path) -> None:
    done = sluice("--from", bundle, "status", "--lab", "x")
    assert done.exit_code == 2
    assert "--from does not go with --lab" in done.output
    assert sluice("--from", bundle, "bundle").exit_code == 2


def test_questions_for_running_clusters_are_refused_offline(manifests: Path) -> None:
    done = sluice("--from", manifests, "check")
    assert done.exit_code == 1
    assert "nobody has checked the nodes of this cluster" in done.output


def test_bundle_tells_what_was_dropped(bundle: Path, tmp_path: Path) -> None:
    """The counters are those of the flows that it has."""
    dropping = [
        cookie
        for cookie, (flow, owners) in read_source(bundle).programs.of("n1").items()
        if drop_reason(flow) == NO_ROUTE and owners[0].name == "n1"
    ]
    rows = [
        FlowRow("Forwarding", 100, 250, f"{cookie:#018x}", 7, 700, "installed")
        for cookie in dropping
    ]
    report = FlowReport(node="n1", flows=tuple(rows), groups=())
    members = {
        name.removeprefix("sluice-bundle/"): content for name, content in content_of(bundle).items()
    }
    header = json.loads(members["bundle.json"]) | {
        "flows": {"n1": "flows/0.json", "n2": "flows/1.json"}
    }
    members["bundle.json"] = json.dumps(header).encode()
    members["flows/0.json"] = msgspec.json.encode(report)
    path = tmp_path / "b.tar.zst"
    bundle_file.write(path, members)
    done = sluice("--from", path, "drops", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {(row["reason"], row["packets"]) for row in found["drops"]} == {("no route", 7)}
    assert found["unread"] == {"n2": "its flows are not in the bundle"}
    assert [row["why"] for row in found["drops"]] == [
        "an address of this node's podCIDR without a pod"
    ]
    elsewhere = json.loads(sluice("--from", path, "drops", "--node", "n2", "--json").stdout)
    assert elsewhere["drops"] == []
    for words in (["top", "--once"], ["wait", "node/n1"]):
        done = sluice("--from", path, *words)
        assert done.exit_code == 1
        assert done.stderr.count("\n") == 1


# --- hostile bundles ---

HEADER = json.dumps({"version": 1, "made": "2026-11-29T00:00:00Z", "program": "0.1.0"}).encode()
COPY = json.dumps(
    {
        "version": 1, "podRange": "10.244.0.0/16", "serviceRange": "10.96.0.0/12",
        "tunnelPort": 6081, "newConnectionsPerSecond": 4000, "excludedNodes": [],
        "mirrorPodsAsMembers": False,
    }
).encode()  # fmt: skip


def entry(name: str, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size = size
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def packed(
    *members: tuple[str | tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT
) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=form) as archive:
        for name, content in members:
            info = entry(name, len(content)) if isinstance(name, str) else name
            archive.addfile(info, io.BytesIO(content))
    return zstandard.compress(plain.getvalue())


def member(name: str) -> str:
    return f"sluice-bundle/{name}"


def whole(cluster: bytes = COPY, *more: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
    return packed((member("bundle.json"), HEADER), (member("cluster.jsonl"), cluster), *more)


def with_line(content: Any) -> bytes:
    return whole(COPY + b"\n" + json.dumps(content).encode())


def pod(name: str, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "a", "uid": name, **metadata}, "spec": {}}


def zeros(size: int) -> Iterator[bytes]:
    for _ in range(size >> 20):
        yield bytes(1 << 20)


def bomb() -> bytes:
    """Five members of 250 MiB: 40 KB."""
    out = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as stream:
        for number in range(5):
            info = entry(member(f"x{number}"), 250 << 20)
            stream.write(info.tobuf(tarfile.USTAR_FORMAT))
            for some in zeros(250 << 20):
                stream.write(some)
    return out.getvalue()


def long_window() -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(b"x" * (1 << 20))


HOSTILE: dict[str, tuple[Any, str]] = {
    "path traversal": (
        lambda: whole(COPY, ("sluice-bundle/../../etc/passwd", b"x")), "does not belong"
    ),
    "absolute path": (lambda: whole(COPY, ("/etc/passwd", b"x")), "does not belong"),
    "symbolic link": (
        lambda: whole(COPY, (entry(member("status.json"), type=tarfile.SYMTYPE,
                                   linkname="/etc/shadow"), b"")),
        "is not a plain file",
    ),
    "hard link": (
        lambda: whole(COPY, (entry(member("status.json"), type=tarfile.LNKTYPE,
                                   linkname="/etc/shadow"), b"")),
        "is not a plain file",
    ),
    "device": (
        lambda: whole(COPY, (entry(member("status.json"), type=tarfile.CHRTYPE), b"")),
        "is not a plain file",
    ),
    "extended header": (
        lambda: packed((entry("x", pax_headers={"comment": "y" * 100_000}), b""),
                       form=tarfile.PAX_FORMAT),
        "is not a plain file",
    ),
    "bomb": (bomb, "larger than 1024 MiB when it is decompressed"),
    "one member too large": (
        lambda: zstandard.compress(
            entry(member("status.json"), 2 << 30).tobuf(tarfile.USTAR_FORMAT)),
        "'sluice-bundle/status.json' is larger than 256 MiB",
    ),
    "window": (long_window, "or damaged"),
    "truncated": (lambda: whole()[:-20], "cut off"),
    "truncated archive": (
        lambda: zstandard.compress(zstandard.decompress(whole(), 1 << 20)[:700]), "cut off"
    ),
    "members": (
        lambda: packed(*((member(f"x{n}"), b"") for n in range(10_000))), "more than 1000 members"
    ),
    "member twice": (lambda: whole(COPY, (member("cluster.jsonl"), COPY)), "is in it twice"),
    "no header": (lambda: packed((member("status.json"), b"{}")), "it has no bundle.json"),
    "nothing": (lambda: zstandard.compress(b""), "cut off"),
    "no archive": (lambda: zstandard.compress(b"x" * 10_000), "or damaged"),
    "later version": (
        lambda: packed((member("bundle.json"), HEADER.replace(b'"version": 1', b'"version": 9'))),
        "the bundle has version 9, and this program knows 1",
    ),
    "no objects": (lambda: packed((member("bundle.json"), HEADER)), "has no objects"),
    "header is deep": (lambda: packed((member("bundle.json"), b"[" * 100_000)), "cannot be read"),
    "objects are deep": (lambda: whole(COPY + b"\n" + b'{"x":' * 100_000), "cannot be read"),
    "no JSON": (lambda: whole(b"<html>"), "cannot be read"),
    "not UTF-8": (lambda: whole(b"\xff\xfe"), "cluster.jsonl is not UTF-8"),
    "terminal": (
        lambda: with_line({"kind": "Pod", "objects": [pod("a", labels={"x": "\x1b]0;you\x07"})]}),
        "characters that control a terminal",
    ),
    "text direction": (
        lambda: whole(COPY + '\n{"kind": "Pod", "objects": [], "x": "\u202e"}'.encode()),
        "characters that control a terminal",
    ),
    "name": (
        lambda: with_line({"kind": "Pod", "objects": [pod("a/b")]}), "metadata.name: 'a/b' does not"
    ),
    "unknown kind": (lambda: with_line({"kind": "Secret", "objects": []}), "cannot be read"),
    "giant object": (
        lambda: with_line({"kind": "Pod", "objects": [pod("a", labels={"x": "y" * (65 << 20)})]}),
        "a line of more than 64 MiB",
    ),
    "wrong type": (lambda: with_line({"kind": "Pod", "objects": [7]}), "cannot be read"),
    "address": (
        lambda: with_line({"node": "n1", "attachments": [["p1", 16, "1.2.3.4.5", "a/b"]]}),
        "cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bundle_is_one_sentence(tmp_path: Path, name: str) -> None:
    make, sentence = HOSTILE[name]
    path = tmp_path / "b.tar.zst"
    path.write_bytes(make())
    done = sluice("--from", path, "services")
    assert done.exit_code == 1, done.output
    assert sentence in done.output
    assert len(done.output.splitlines()) == 1
    assert len(done.output) < 500
    assert [each.name for each in tmp_path.iterdir()] == ["b.tar.zst"]


def test_very_many_backslashes_take_no_memory(tmp_path: Path) -> None:
    size = 4 << 20
    path = tmp_path / "hostile.tar.zst"
    path.write_bytes(whole(COPY, (member("metrics.txt"), b"\\" * size)))
    tracemalloc.start()
    try:
        bundle_file.read(path, lambda _: True)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 4 * size


def test_members_of_later_versions_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "b.tar.zst"
    path.write_bytes(whole(COPY, (member("history/1.json"), b"\x1b")))
    assert sluice("--from", path, "services").output == "there are no Services\n"


def test_ten_thousand_objects_are_no_problem(tmp_path: Path) -> None:
    node = {"metadata": {"name": "n1", "uid": "n1"}, "spec": {"podCIDR": "10.244.1.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}  # fmt: skip
    lines = [COPY, json.dumps({"kind": "Node", "objects": [node]}).encode()]
    lines += [
        json.dumps(
            {"kind": "Pod", "objects": [pod(f"p{n}") for n in range(at, at + 1000)]}
        ).encode()
        for at in range(0, 10_000, 1000)
    ]
    path = tmp_path / "b.tar.zst"
    path.write_bytes(whole(b"\n".join(lines)))
    done = sluice("--from", path, "flows", "n1")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "text",
    [
        '{"kind": "Pod", "x": ' + "[" * 5_000 + "]" * 5_000 + "}",
        '{"kind": ["Pod"]}',
        '{"kind": {"Pod": 1}}',
        '{"kind": "List", "items": {"kind": "Pod"}}',
        '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "b"},'
        ' "spec": {}, "status": {"phase": ["Failed"], "podIP": ["10.0.0.1"]}}',
    ],
)
def test_hostile_manifest_is_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hostile.json"
    path.write_text(text)
    result = sluice("status", "--from", path)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception


def test_folder_with_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(HEADER)
    (tmp_path / "cluster.jsonl").symlink_to("/etc/passwd")
    done = sluice("--from", tmp_path, "services")
    assert done.exit_code == 1
    assert "it is no bundle, or damaged: Too many levels of symbolic links" in done.output


def test_recorded_status_and_flows_may_be_anything(tmp_path: Path) -> None:
    header = json.dumps(
        json.loads(HEADER) | {"flows": {"n1": "flows/0.json", "n2": "../x"}}
    ).encode()
    node = {"metadata": {"name": "n1", "uid": "n1"}, "spec": {"podCIDR": "10.244.1.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}  # fmt: skip
    row = {"table": "X", "tableNumber": 1, "priority": 1, "cookie": "7" * 10_000, "packets": 0,
           "bytes": 0, "state": "no state"}  # fmt: skip
    flows = {"version": 1, "node": "n1", "flows": [row], "groups": []}
    path = tmp_path / "b.tar.zst"
    path.write_bytes(
        packed(
            (member("bundle.json"), header),
            (
                member("cluster.jsonl"),
                COPY + b"\n" + json.dumps({"kind": "Node", "objects": [node]}).encode(),
            ),
            (member("status.json"), b'{"nodes": 7}'),
            (member("flows/0.json"), json.dumps(flows).encode()),
        )
    )
    done = sluice("--from", path, "status")
    assert (done.exit_code, "status.json cannot be read" in done.output) == (1, True)
    done = sluice("--from", path, "flows", "n1")
    assert (done.exit_code, "has the cookie '7777" in done.output) == (1, True)
