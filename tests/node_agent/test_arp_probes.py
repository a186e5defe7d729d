"""When the agent asks whether another host has one of its addresses."""

from ipaddress import IPv4Address
from typing import cast

from pyroute2 import AsyncIPRoute

from node_agent.address_holds import Hold, Holds
from node_agent.arp_answers import PROBED_EVERY, ArpAnswers

ADDRESS = IPv4Address("192.0.2.1")


def test_an_interface_that_comes_back_again_and_again_adds_no_probes() -> None:
    now = 100.0
    holds = Holds(())
    holds.held[ADDRESS] = Hold(1, now + 1000)
    answers = ArpAnswers(cast("AsyncIPRoute", None), lambda: None, holds, lambda: now)
    answers.announced = {ADDRESS}

    def probes() -> list[float]:
        return [at for at, _, _, probes in answers._due if probes]

    for _ in range(100):
        answers.begin([ADDRESS])
    assert len(probes()) == 1

    # One follows another, and one that comes when the address is lost is the last.
    answers._due.clear()
    answers._say(ADDRESS, probes=True)
    (following,) = probes()
    assert following > now + PROBED_EVERY / 2
    del holds.held[ADDRESS]
    answers._due.clear()
    answers._say(ADDRESS, probes=True)
    assert probes() == []
    answers.begin([ADDRESS])
    assert len(probes()) == 1
