"""What gateways post: as much as they want."""

import asyncio
from ipaddress import IPv4Address

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from controller.api import Api
from controller.egress_api import BYTES_BURST
from controller.inventory import Inventory
from controller.reconciler import Reconciler
from tests.controller.world import NODE, SETTINGS
from tests.flows.worlds import CLUSTER
from wire import paths
from wire.documents import decode_egress_use, egress_use, encode
from wire.egress import (
    MAX_ADDRESSES,
    MAX_DESTINATIONS,
    MAX_PODS,
    AddressUse,
    DestinationUse,
    EgressUse,
)

PODS = ((IPv4Address("10.244.1.5"), 7),) * MAX_PODS
DESTINATION = DestinationUse(IPv4Address("203.0.113.10"), 6, 443, 70, PODS)
ADDRESS = AddressUse(IPv4Address("192.0.2.9"), 70, 20, PODS, (DESTINATION,) * MAX_DESTINATIONS)


def test_a_long_document_is_read_in_steps() -> None:
    body = encode(EgressUse((ADDRESS,) * 100, 3, 4))
    made = egress_use(body)
    for _ in range(100):
        next(made)
    with pytest.raises(StopIteration) as end:
        next(made)
    assert end.value.value == decode_egress_use(body)


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b'{"addresses": [{}]}', b'{"addresses": [[]]}', b'{"tracked": -1}',
        b'{"addresses": [' + b"1," * MAX_ADDRESSES + b"1]}",
    ],
)  # fmt: skip
def test_what_is_no_document_is_refused(body: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        list(egress_use(body))


def test_what_a_node_sends_is_bounded() -> None:
    body = encode(EgressUse((ADDRESS,) * 150))
    path = paths.path_for(paths.EGRESS, NODE.metadata.name)

    async def main() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        api = Api(reconciler, SETTINGS)
        async with TestClient(TestServer(api.application(local=True))) as client:
            reconciler.update([NODE], [])
            reconciler.source_complete(True)
            answers = [(await client.post(path, data=body)).status for _ in range(6)]
        assert 0 < answers.count(204) <= BYTES_BURST / len(body) + 1
        assert answers[-1] == 429

    asyncio.run(main())
