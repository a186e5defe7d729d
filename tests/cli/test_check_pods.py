"""`sluice check --before --image` with an API server in the place of a cluster with kubelets."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from aiohttp import web
from click.testing import CliRunner, Result

from cli import check_pods
from cli.main import main
from node_agent.checks.facts import decode_wanted
from tests.ports import free_port
from wire.findings import Finding, NodeFindings, Severity

FOUND = NodeFindings("whoever", (Finding(Severity.WARNING, "interface cni0", "it is there", "go"),))
WAITS = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}


class Cluster:
    """Its API server, whose Pods end at once: `logs` and `states` are by node."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "clusters": [
                        {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
                    ],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        self.logs: dict[str, str] = {}
        self.states: dict[str, Any] = {}
        self.namespaces: list[str] = []
        self.left: dict[str, str] = {}
        """Namespaces of earlier runs, and when they were made."""
        self.pods: list[dict[str, Any]] = []
        self.refused = ""

    def sluice(self, *words: str) -> Result:
        given = ["check", "--before", "--image", "i", "--kubeconfig", str(self.kubeconfig), *words]
        return CliRunner().invoke(main, given)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

        async def serve() -> None:
            application = web.Application(middlewares=[self._refuse])
            base = "/api/v1/namespaces"
            application.add_routes(
                [
                    web.get("/api/v1/nodes", self._nodes),
                    web.get("/apis/apps/v1/daemonsets", self._daemon_sets),
                    web.get(base, self._namespaces),
                    web.post(base, self._namespace),
                    web.delete(f"{base}/{{namespace}}", self._delete),
                    web.post(f"{base}/{{namespace}}/pods", self._pod),
                    web.get(f"{base}/{{namespace}}/pods", self._list),
                    web.get(f"{base}/{{namespace}}/pods/{{pod}}/log", self._log),
                ]
            )
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
            ready.set()
            await stop.wait()
            await runner.cleanup()

        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
        thread.start()
        try:
            assert ready.wait(30)
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(30)
            loop.close()

    @web.middleware
    async def _refuse(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.refused and f"{request.method} {request.path}".startswith(self.refused):
            return web.json_response({"message": "no"}, status=403)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _nodes(self, _: web.Request) -> web.Response:
        items = [
            {
                "metadata": {"name": f"n{number}"},
                "spec": {"podCIDR": f"10.244.{number}.0/24"},
                "status": {"addresses": [{"type": "InternalIP", "address": f"192.0.2.{number}"}]},
            }
            for number in (1, 2)
        ]
        return web.json_response({"items": items})

    async def _daemon_sets(self, _: web.Request) -> web.Response:
        return web.json_response({"items": []})

    async def _namespaces(self, request: web.Request) -> web.Response:
        assert request.query["labelSelector"] == "app.kubernetes.io/managed-by=sluice-check"
        items = [
            {"metadata": {"name": name, "creationTimestamp": made}}
            for name, made in self.left.items()
        ]
        return web.json_response({"items": items})

    async def _namespace(self, request: web.Request) -> web.Response:
        made = (await request.json())["metadata"]
        assert made["labels"]["app.kubernetes.io/managed-by"] == "sluice-check"
        self.namespaces.append(made["name"])
        return web.json_response({})

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["namespace"]
        if name in self.left:
            del self.left[name]
        else:
            self.namespaces.remove(name)
        return web.json_response({})

    async def _pod(self, request: web.Request) -> web.Response:
        self.pods.append(await request.json())
        return web.json_response({})

    async def _list(self, _: web.Request) -> web.Response:
        items = []
        for pod in self.pods:
            status: dict[str, Any] = {"phase": "Succeeded"}
            if (state := self.states.get(pod["spec"]["nodeName"])) is not None:
                container = {
                    "name": "check", "image": "i", "imageID": "", "ready": False,
                    "restartCount": 0, "state": state,
                }  # fmt: skip
                status = {"phase": "Pending", "containerStatuses": [container]}
            items.append({"metadata": pod["metadata"], "status": status})
        return web.json_response({"items": items})

    async def _log(self, request: web.Request) -> web.Response:
        (node,) = (
            pod["spec"]["nodeName"]
            for pod in self.pods
            if pod["metadata"]["name"] == request.match_info["pod"]
        )
        return web.Response(text=self.logs.get(node, msgspec.json.encode(FOUND).decode()))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(check_pods, "POLL", 0.01)
    made = Cluster(tmp_path)
    with made.running():
        yield made


def test_each_node_is_checked_by_a_pod_of_its_own(cluster: Cluster) -> None:
    done = cluster.sluice("--json", "--pod-range", "10.244.0.0/20")
    assert (done.exit_code, cluster.namespaces) == (0, [])
    report = json.loads(done.stdout)
    assert [node["node"] for node in report["nodes"]] == ["cluster", "n1", "n2"]
    assert report["nodes"][1]["findings"] == [msgspec.to_builtins(FOUND.findings[0])]
    assert report["unanswered"] == {}
    first, second = (
        decode_wanted(pod["spec"]["containers"][0]["args"][2].encode()) for pod in cluster.pods
    )
    assert (first.node, str(first.address), str(first.pod_range)) == (
        "n1", "192.0.2.1", "10.244.0.0/20",
    )  # fmt: skip
    assert [peer.name for peer in first.peers] == ["n2"]
    assert [peer.name for peer in second.peers] == ["n1"]


def test_pod_that_cannot_start_and_one_that_says_nonsense_are_named(cluster: Cluster) -> None:
    cluster.states["n1"] = WAITS
    cluster.logs["n2"] = "Traceback\n\x1b]0;you\x07"
    done = cluster.sluice()
    assert (done.exit_code, cluster.namespaces) == (1, [])
    assert "n1: not checked: its Pod cannot start: ErrImagePull: no such image" in done.output
    assert "n2: not checked: its Pod has said '\\x1b]0;you\\x07'" in done.output


def test_unknown_node_is_named_and_the_others_are_checked(cluster: Cluster) -> None:
    done = cluster.sluice("n9", "n2")
    assert done.exit_code == 1
    assert "n9: not checked: there is no Node n9" in done.output
    assert [pod["spec"]["nodeName"] for pod in cluster.pods] == ["n2"]


@pytest.mark.parametrize(
    ("refused", "permission"),
    [
        ("GET /api/v1/nodes", "list nodes"),
        ("POST /api/v1/namespaces", "create namespaces"),
        ("POST /api/v1/namespaces/", "create pods"),
    ],
)
def test_missing_permission_is_one_sentence(
    cluster: Cluster, refused: str, permission: str
) -> None:
    cluster.refused = refused
    done = cluster.sluice()
    assert (done.exit_code, cluster.namespaces) == (1, [])
    assert f"your user lacks the permission to {permission}" in done.output


def test_what_killed_runs_left_is_removed(cluster: Cluster) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    long_ago = "2020-01-01T00:00:00Z"
    cluster.left = {"sluice-check-old": long_ago, "sluice-check-new": now, "other": long_ago}
    done = cluster.sluice()
    assert cluster.left.keys() == {"sluice-check-new", "other"}
    assert "removing sluice-check-old, of an earlier run" in done.output


def test_without_the_right_to_list_namespaces_it_goes_on(cluster: Cluster) -> None:
    cluster.refused = "GET /api/v1/namespaces"
    cluster.left = {"sluice-check-old": "2020-01-01T00:00:00Z"}
    done = cluster.sluice()
    assert "what earlier runs left is not looked for: " in done.output
    assert (len(cluster.left), cluster.namespaces, len(cluster.pods)) == (1, [], 2)


def test_interrupted_check_leaves_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        assert cluster.namespaces
        raise KeyboardInterrupt

    monkeypatch.setattr(check_pods.time, "sleep", interrupt)
    assert cluster.sluice().exit_code == 1
    assert cluster.namespaces == []
