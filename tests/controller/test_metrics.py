"""What Prometheus gets from the controller."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from controller import metrics_api
from controller.inventory import Inventory
from controller.metrics_api import MetricsApi
from controller.problems import Reporter, ReporterKind
from controller.reconciler import Reconciler
from flows.refs import ObjectRef
from tests.flows.worlds import CLUSTER


def scraped(
    reconciler: Reconciler, change: Any, times: int = 2, path: str = "/metrics"
) -> list[str]:
    """Answers to scrapers, with a change after each."""

    async def main() -> list[str]:
        application = web.Application()
        api = MetricsApi(reconciler)
        application.add_routes([*api.open_routes(), *api.routes()])
        answers = []
        async with TestClient(TestServer(application)) as client:
            for number in range(times):
                answers.append(await (await client.get(path)).text())
                change(number)
        return answers

    return asyncio.run(main())


@pytest.fixture
def reconciler() -> Reconciler:
    async def make() -> Reconciler:
        return Reconciler(Inventory(CLUSTER))

    return asyncio.run(make())


@pytest.mark.parametrize(("fresh", "counted"), [(0.0, [0, 1]), (3600.0, [0, 0])])
def test_answer_is_given_again_for_a_while(
    reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch, fresh: float, counted: list[int]
) -> None:
    monkeypatch.setattr(metrics_api, "FRESH", fresh)
    reporter = Reporter(ReporterKind.AGENT, "node1")

    def change(number: int) -> None:
        reconciler.problems.set(reporter, ObjectRef("Pod", "a", f"p{number}"), "a sentence")

    found = scraped(reconciler, change)
    assert [f'sluice_problems{{reporter="agent"}} {count:.1f}' in text for count, text in zip(
        counted, found, strict=True
    )] == [True, True]  # fmt: skip


@pytest.mark.parametrize("path", ["/metrics", "/v1/metrics"])
def test_problems_are_counted_by_reporter(reconciler: Reconciler, path: str) -> None:
    for kind, node in (
        (ReporterKind.AGENT, "n1"),
        (ReporterKind.AGENT, "n2"),
        (ReporterKind.PORTS, "n1"),
    ):
        reconciler.problems.set(Reporter(kind, node), ObjectRef("Node", "", node), "a sentence")
    (text,) = scraped(reconciler, lambda _: None, times=1, path=path)
    assert 'sluice_problems{reporter="agent"} 2.0' in text
    assert 'sluice_problems{reporter="ports"} 1.0' in text
    assert 'sluice_problems{reporter="source"} 0.0' in text


def test_switches_are_counted_when_somebody_asks(reconciler: Reconciler) -> None:
    for number in range(3):
        reconciler.sessions[f"node{number}"] = SimpleNamespace(  # type: ignore[assignment]
            in_sync=number > 0, audit=SimpleNamespace(foreign=number)
        )
    (text,) = scraped(reconciler, lambda _: None, times=1)
    assert "sluice_switches_in_sync 2.0" in text
    assert "sluice_foreign_flows 3.0" in text
