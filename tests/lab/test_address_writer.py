"""Two controllers give addresses to Services of a real API server, by way of proxies that fail."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controller.inventory import Inventory
from controller.leadership import Leadership, clock
from controller.load_balancers.writer import AddressWriter, StatusAtServer
from controller.reconciler import Reconciler
from controller.sources import kubernetes as source
from tests.flows.worlds import CLUSTER
from tests.lab.real_kubernetes import Proxy, RealKubernetes, running

CONDITION = "sluice.dev/AddressAssigned"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKubernetes]:
    with running(tmp_path_factory.mktemp("kube")) as made:
        yield made


class Controller:
    """What of a controller gives addresses; it leads when it is told to."""

    def __init__(self, kubeconfig: Path, proxy: Proxy) -> None:
        self.proxy = proxy
        self.leadership = Leadership(elected=True)
        self.reconciler = Reconciler(Inventory(CLUSTER), leadership=self.leadership)
        self._source = source.ApiServer(kubeconfig, self.reconciler)
        self._writer = AddressWriter(self.reconciler, StatusAtServer(kubeconfig))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._source.run())
            group.create_task(self._writer.run())

    def lead(self, generation: int) -> None:
        now = clock()
        self.leadership.grant(generation, now + 3600, now)

    def problem(self, name: str) -> str:
        found = self.reconciler.problems.texts()
        return found.get(f"address of Service default/{name}", "")


@asynccontextmanager
async def controller(cluster: RealKubernetes, kubeconfig: Path) -> AsyncIterator[Controller]:
    proxy = Proxy()
    server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
    await asyncio.to_thread(
        cluster.write_kubeconfig, kubeconfig, server.sockets[0].getsockname()[1]
    )
    made = Controller(kubeconfig, proxy)
    task = asyncio.create_task(made.run())
    try:
        await until(made.reconciler.listed.is_set)
        yield made
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()
        await proxy.stop()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(120):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.1)


def apply(cluster: RealKubernetes, *manifests: dict[str, Any]) -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    cluster.kubectl("apply", "-f", "-", manifest=listed)


def pool(name: str, *ranges: str) -> dict[str, Any]:
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "AddressPool",
        "metadata": {"name": name},
        "spec": {"ranges": list(ranges)},
    }


def service(name: str, kind: str = "LoadBalancer", **annotations: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": "default",
            "annotations": {f"sluice.dev/{key}": text for key, text in annotations.items()},
        },
        "spec": {"type": kind, "ports": [{"port": 80, "protocol": "TCP"}]},
    }


def statuses(cluster: RealKubernetes) -> dict[str, dict[str, Any]]:
    """By name of the Service, its status."""
    items = json.loads(cluster.kubectl("get", "services", "-n", "default", "-o", "json"))["items"]
    return {item["metadata"]["name"]: item["status"] for item in items}


def addresses(cluster: RealKubernetes) -> dict[str, str]:
    """By name of the Service, the address in its status."""
    return {
        name: ingress[0]["ip"]
        for name, status in statuses(cluster).items()
        if (ingress := status["loadBalancer"].get("ingress"))
    }


Story = Callable[[Controller, Controller], Awaitable[None]]


@pytest.fixture
def play(
    cluster: RealKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Story], None]:
    """Tell a story of two controllers, in a cluster without Services and pools."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(source, "LONGEST_BACKOFF", 1.0)
    monkeypatch.setattr(source, "ABSENT_SECONDS", 0.5)

    async def main(story: Story) -> None:
        async with (
            controller(cluster, tmp_path / "one") as one,
            controller(cluster, tmp_path / "two") as two,
        ):
            await story(one, two)

    def play(story: Story) -> None:
        cluster.kubectl("delete", "services", "-n", "default", "-l", "component!=apiserver")
        cluster.kubectl("delete", "addresspools", "--all")
        asyncio.run(main(story))

    return play


def test_life_of_an_address(cluster: RealKubernetes, play: Callable[[Story], None]) -> None:
    async def story(one: Controller, _: Controller) -> None:
        def do(*manifests: dict[str, Any]) -> Awaitable[None]:
            return asyncio.to_thread(apply, cluster, *manifests)

        one.lead(1)
        await do(pool("a", "192.0.2.8/30"), service("s"), service("t", addresses="192.0.2.9"))
        await until(lambda: {*addresses(cluster)} == {"s", "t"})
        status = (await asyncio.to_thread(statuses, cluster))["t"]
        assert status["loadBalancer"] == {"ingress": [{"ip": "192.0.2.9", "ipMode": "VIP"}]}
        (condition,) = status["conditions"]
        assert (condition["type"], condition["message"]) == (
            CONDITION,
            "192.0.2.9 of AddressPool a",
        )

        # The pool loses it.
        await do(pool("a", "192.0.2.10/31"))
        await until(lambda: {*addresses(cluster).values()} <= {"192.0.2.10", "192.0.2.11"})
        assert (await asyncio.to_thread(addresses, cluster)).keys() == {"s"}
        assert "192.0.2.9 is in no AddressPool" in one.problem("t")

        # It changes its type, and is deleted.
        await do(service("s", "ClusterIP"))
        await until(lambda: addresses(cluster) == {})
        await until(lambda: statuses(cluster)["s"]["conditions"][0]["status"] == "False")
        await do(service("u"), service("v"))
        await until(lambda: {*addresses(cluster)} == {"u", "v"})
        await do(service("w"))
        await until(lambda: one.problem("w") == "no address is free in AddressPool a")
        await asyncio.to_thread(cluster.kubectl, "delete", "service", "-n", "default", "v")
        await until(lambda: {*addresses(cluster)} == {"u", "w"})
        assert one.problem("w") == ""

    play(story)


def test_no_address_is_given_twice_at_takeovers(
    cluster: RealKubernetes, play: Callable[[Story], None]
) -> None:
    """Answers of the API server are lost, and what a controller sees is late, at each takeover."""

    async def story(one: Controller, two: Controller) -> None:
        given: dict[str, str] = {}

        def check() -> dict[str, str]:
            found = addresses(cluster)
            assert len(set(found.values())) == len(found), found
            changed = {name for name in given if given[name] != found.get(name)}
            assert not changed, "an address stays with its Service"
            given.update(found)
            return found

        await asyncio.to_thread(apply, cluster, pool("a", "192.0.2.0/26"))
        await asyncio.sleep(1)
        controllers = [one, two]
        for term in range(1, 4):
            leader, other = controllers
            leader.lead(term)
            leader.proxy.accepts = True
            names = [f"s{term}-{number}" for number in range(15)]
            await asyncio.to_thread(apply, cluster, *map(service, names))
            # It hears nothing any more, in the middle of its writes, and then another one leads.
            await until(lambda names=names: not check().keys().isdisjoint(names))
            other.proxy.delay = 0.5
            leader.proxy.carries.clear()
            await asyncio.sleep(0.5)
            leader.leadership.withdraw()
            leader.proxy.reset()
            leader.proxy.carries.set()
            leader.proxy.delay = 0.0
            controllers.reverse()
        one.lead(4)
        two.proxy.accepts = one.proxy.accepts = True
        await until(lambda: len(check()) == 45)

    play(story)
