"""What is flushed: connections that nobody has any more, and never those of a new owner."""

import asyncio
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

import pytest

from controller import conntrack_flush
from controller.conntrack_flush import (
    FLUSHES_OF_FREED,
    FLUSHES_OF_STALE,
    AnyFlush,
    ConntrackFlush,
)
from controller.stale_udp import StalePair
from flows.features.protocols import UDP
from flows.pipeline import CT_ZONE
from openflow.batch import Batch
from openflow.conntrack import Forget
from tests.controller.service_inventory import inventory, put
from tests.controller.service_objects import endpoint_slice, service

FREED, AGAIN = IPv4Address("10.244.1.5"), IPv4Address("10.244.1.6")


def test_freed_address_is_forgotten_unless_it_has_a_new_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conntrack_flush, "FREED_TICK", 0.0)
    sent: list[AnyFlush] = []
    view: Any = SimpleNamespace(attachments={})

    async def main() -> ConntrackFlush:
        made = ConntrackFlush(view, sent.append)
        made.free("node1", [FREED, AGAIN])
        # Before the tick, the second one is another pod's.
        view.attachments["node1"] = {"port": SimpleNamespace(address=AGAIN)}
        async with asyncio.timeout(60):
            while not sent:
                await asyncio.sleep(0)
        return made

    made = asyncio.run(main())
    (flush,) = sent
    assert flush.times == FLUSHES_OF_FREED
    assert flush.batch == Batch.forgetting(CT_ZONE, [FREED])
    # A switch that is slow has not flushed it yet when another pod gets it.
    made.reuse({AGAIN})
    assert flush.batch == Batch.forgetting(CT_ZONE, [FREED])
    made.reuse({FREED})
    assert flush.batch is None


def test_endpoint_that_comes_back_is_flushed_no_more() -> None:
    """An answer that is on its way would find no connection, and be lost."""
    udp = [{"port": 53, "protocol": "UDP"}]
    world = inventory(
        service("s", ports=udp),
        service("t", ports=udp, clusterIP="10.96.0.2"),
        endpoint_slice("s-1", "s", ["10.244.1.5", "10.244.1.6"], udp),
    )
    stale_udp = world.services.stale_udp
    stale_udp.take()
    sent: list[AnyFlush] = []
    made = ConntrackFlush(world.view, sent.append, stale_udp)

    def change(name: str, *addresses: str) -> None:
        put(world, endpoint_slice(f"{name}-1", name, addresses, udp))
        made.add_stale(stale_udp.take())

    change("s")
    assert sent == []
    made.published()
    (flush,) = sent
    assert flush.times == FLUSHES_OF_STALE
    assert _flushed(flush) == {Forget.endpoint(CT_ZONE, UDP, IPv4Address(address), 53)
                               for address in ("10.244.1.5", "10.244.1.6")}  # fmt: skip
    # Before the switches have flushed, both come back: one to the Service, one to another.
    change("s", "10.244.1.5")
    assert _flushed(flush) == {Forget.endpoint(CT_ZONE, UDP, IPv4Address("10.244.1.6"), 53)}
    change("t", "10.244.1.6")
    assert flush.batch is None
    made.published()
    pair = StalePair(IPv4Address("10.96.0.1"), 53, IPv4Address("10.244.1.6"), 53)
    assert pair.forget(CT_ZONE) in {each for later in sent[1:] for each in _flushed(later)}
    # Also what came back before it was published.
    change("s")
    change("s", "10.244.1.5", "10.244.1.6")
    before = len(sent)
    made.published()
    assert {each for later in sent[before:] for each in _flushed(later)} == {
        Forget.untranslated(CT_ZONE, UDP, IPv4Address("10.96.0.1"), 53)
    }
    assert all(each.batch is None for each in sent if pair in each.items)


def _flushed(flush: AnyFlush) -> set[Forget]:
    """What it has flushed in the first zone."""
    assert flush.batch is not None
    messages = [message for part in flush.batch.parts for message in part.messages]
    return {each for each in messages if isinstance(each, Forget) and each.zone == CT_ZONE}
