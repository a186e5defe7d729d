"""How many flows the datapath's cache holds, as a real switch tells it."""

import asyncio

import pytest

from node_agent import datapath
from tests.ovs import Ovs


@pytest.mark.parametrize(
    ("shown", "number"),
    [
        ("  flows         : (current 0) (avg 0) (max 0) (limit 200000)", 1_024),
        ("  flows         : (current 1024) (avg 7)", 1_024),
        ("  flows         : (current 1025) (avg 7)", 2_048),
        ("  flows         : (current 200000) (avg 7)", 262_144),
        ("something else", 0),
    ],
)
def test_number_is_rounded_up_to_a_power_of_two(shown: str, number: int) -> None:
    assert datapath.rounded(shown) == number


def test_switch_tells_its_number(ovs: Ovs) -> None:
    assert asyncio.run(datapath.cached_flows(ovs.directory)) == datapath.FEWEST
