"""The election by a Lease of a real kube-apiserver.

What only a played one can do is in `tests.controller.test_lease_loop`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controller import lease_loop as module
from controller.election import MOST_TRANSITIONS
from controller.lease_loop import ADDRESS
from settings import Election as Settings
from tests.controller.lease_server import Replica
from tests.lab.real_kubernetes import Proxy, RealKubernetes, running

NAME = "sluice-controller"
"""The Lease to which the controller of a lab has a right."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKubernetes]:
    with running(tmp_path_factory.mktemp("kube")) as made:
        yield made


_GROUP = "rbac.authorization.k8s.io"
_LEASES = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"]}
LEASES_ANYWHERE = {
    "apiVersion": "v1",
    "kind": "List",
    "items": [
        {
            "apiVersion": f"{_GROUP}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "leases-anywhere"},
            "rules": [
                _LEASES | {"verbs": ["create"]},
                _LEASES | {"verbs": ["get", "update"], "resourceNames": ["sluice-controller"]},
            ],
        },
        {
            "apiVersion": f"{_GROUP}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "leases-anywhere"},
            "roleRef": {"apiGroup": _GROUP, "kind": "ClusterRole", "name": "leases-anywhere"},
            "subjects": [{"apiGroup": _GROUP, "kind": "User", "name": "sluice-controller"}],
        },
    ],
}
"""What the controllers of a lab may do in the namespace of their Lease alone."""


class Election:
    """Replicas that take part, by way of a proxy, in a namespace of their own."""

    def __init__(
        self, cluster: RealKubernetes, proxy: Proxy, kubeconfig: Path, namespace: str
    ) -> None:
        self.cluster = cluster
        self.proxy = proxy
        self.namespace = namespace
        self._kubeconfig = kubeconfig
        self._made: list[Replica] = []

    def replica(self, name: str, *, lease: str = NAME) -> Replica:
        made = Replica(name, self._kubeconfig, Settings(namespace=self.namespace, name=lease))
        self._made.append(made)
        return made

    async def kubectl(self, *arguments: str, manifest: Any = None) -> str:
        return await asyncio.to_thread(
            self.cluster.kubectl, "--namespace", self.namespace, *arguments, manifest=manifest
        )

    async def lease(self) -> Any:
        return json.loads(await self.kubectl("get", "lease", NAME, "-o", "json"))

    async def given(self, **spec: Any) -> None:
        """Somebody has made the Lease."""
        manifest = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NAME, "labels": {"team": "net"}},
            "spec": spec,
        }
        await self.kubectl("apply", "-f", "-", manifest=manifest)

    async def end(self) -> None:
        for each in self._made:
            await each.end()


Story = Callable[[Election], Awaitable[None]]


@pytest.fixture
def play(
    cluster: RealKubernetes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Callable[[Story], None]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(module, "TIMEOUT", 60.0)
    namespace = request.node.name.removeprefix("test_").replace("_", "-")[:60].strip("-")

    def run(story: Story) -> None:
        async def main() -> None:
            async with election(cluster, tmp_path / "kubeconfig", namespace) as made:
                await made.kubectl("create", "namespace", namespace)
                await made.kubectl("apply", "-f", "-", manifest=LEASES_ANYWHERE)
                await story(made)

        asyncio.run(main())

    return run


@asynccontextmanager
async def election(
    cluster: RealKubernetes, kubeconfig: Path, namespace: str
) -> AsyncIterator[Election]:
    proxy = Proxy()
    server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
    cluster.write_kubeconfig(kubeconfig, server.sockets[0].getsockname()[1])
    made = Election(cluster, proxy, kubeconfig, namespace)
    try:
        yield made
    finally:
        await made.end()
        server.close()
        await proxy.stop()


def test_lease_is_made_renewed_taken_and_given_back(play: Any) -> None:
    async def story(election: Election) -> None:
        first, second = election.replica("first"), election.replica("second")
        await first.step()
        assert first.leads
        made = await election.lease()
        generation = first.leadership.generation
        assert made["spec"]["holderIdentity"] == "first"
        assert made["spec"]["leaseTransitions"] == generation
        assert made["metadata"]["annotations"] == {ADDRESS: "first:6654"}
        await first.step(1.0)
        renewed = await election.lease()
        assert renewed["spec"]["renewTime"] > made["spec"]["renewTime"]
        assert renewed["spec"]["acquireTime"] == made["spec"]["acquireTime"]
        await second.step()
        assert second.leadership.leader == "first"
        assert not second.leads
        before = election.proxy.connections
        await second.step(4.0)
        assert second.leads
        taken = await election.lease()
        assert taken["spec"]["leaseTransitions"] == second.leadership.generation == generation + 1
        assert taken["spec"]["acquireTime"] > made["spec"]["acquireTime"]
        await first.step(1.0)
        assert not first.leads
        await second.loop.release()
        assert (await election.lease())["spec"]["holderIdentity"] == ""
        await first.step(1.0)
        assert first.leads
        assert first.leadership.generation == generation + 2
        assert election.proxy.connections == before, "connections are kept"
        assert first.problems == second.problems == []

    play(story)


def test_what_others_have_written_survives(play: Any) -> None:
    async def story(election: Election) -> None:
        await election.given(holderIdentity="", leaseTransitions=3)
        await election.kubectl("annotate", "lease", NAME, "note=mine", "large=" + "x" * 100_000)
        own = election.replica("own")
        await own.step()
        for number in range(3):
            # Each of these makes the next renewal a conflict.
            await election.kubectl("label", "lease", NAME, "--overwrite", f"number={number}")
            since = own.leadership.since
            await own.step(1.0)
            assert own.leads
            assert own.leadership.since == since
        found = await election.lease()
        assert found["metadata"]["labels"] == {"team": "net", "number": "2"}
        assert found["metadata"]["annotations"]["note"] == "mine"
        assert len(found["metadata"]["annotations"]["large"]) == 100_000
        assert found["spec"]["leaseTransitions"] == own.leadership.generation == 4
        assert own.problems == []

    play(story)


def test_deleted_lease_is_made_anew_with_a_greater_generation(play: Any) -> None:
    async def story(election: Election) -> None:
        own = election.replica("own")
        await own.step()
        generation = own.leadership.generation
        await election.kubectl("delete", "lease", NAME)
        await own.step(1.0)
        assert own.leads
        assert (await election.lease())["spec"]["leaseTransitions"] > generation

    play(story)


def test_lease_with_odd_content_ends_nothing(play: Any) -> None:
    async def story(election: Election) -> None:
        await election.given(
            holderIdentity="\x1b[2J\u202e" + "x" * 100_000,
            leaseTransitions=MOST_TRANSITIONS - 1,
            leaseDurationSeconds=(1 << 31) - 1,
        )
        own = election.replica("own")
        await own.step()
        await own.step(60.0)
        assert own.leads
        assert own.leadership.generation == MOST_TRANSITIONS
        assert "cannot be raised" in own.problems[-1]
        await own.step(1.0)
        assert own.leads
        assert len(own.problems) == 1

    play(story)


def test_missing_namespace_and_missing_rights_are_told_once(play: Any) -> None:
    async def story(election: Election) -> None:
        forbidden = election.replica("forbidden", lease="another")
        await forbidden.step()
        await forbidden.step(1.0)
        (problem,) = forbidden.problems
        assert problem.startswith("403: ")
        assert 'cannot get resource "leases"' in problem
        election.namespace = "missing"
        missing = election.replica("missing")
        await missing.step()
        await missing.step(1.0)
        assert missing.problems == ['404: namespaces "missing" not found']

    play(story)


def test_silent_api_server_ends_the_term(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(election: Election) -> None:
        own = election.replica("own")
        await own.step()
        election.proxy.carries.clear()
        with monkeypatch.context() as patch:
            patch.setattr(module, "TIMEOUT", 0.1)
            await own.step(1.0)
            await own.step(1.9)
            assert own.leads
            await own.step(0.2)
        assert not own.leads
        election.proxy.carries.set()
        await own.step(1.0)
        assert own.leads
        assert own.problems == ["TimeoutError", ""]

    play(story)
