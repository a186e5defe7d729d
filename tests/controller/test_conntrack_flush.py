"""Connections of addresses that no pod has any more are forgotten, those of a new owner are not."""

import asyncio
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

import pytest

from controller import conntrack_flush
from controller.conntrack_flush import FLUSHES_OF_FREED, ConntrackFlush
from flows.pipeline import CT_ZONE
from openflow.batch import Batch

FREED, AGAIN = IPv4Address("10.244.1.5"), IPv4Address("10.244.1.6")


def test_freed_address_is_forgotten_unless_it_has_a_new_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conntrack_flush, "FREED_TICK", 0.0)
    sent: list[Batch] = []
    view: Any = SimpleNamespace(attachments={})

    async def main() -> None:
        made = ConntrackFlush(view, sent.append)
        made.free("node1", [FREED, AGAIN])
        # Before the tick, the second one is another pod's.
        view.attachments["node1"] = {"port": SimpleNamespace(address=AGAIN)}
        async with asyncio.timeout(60):
            while not sent:
                await asyncio.sleep(0)

    asyncio.run(main())
    assert sent == [Batch.forgetting(CT_ZONE, [FREED], FLUSHES_OF_FREED)]
