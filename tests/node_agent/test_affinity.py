"""What a switch remembers of clients ends in time, also where no flow can say so itself."""

import asyncio
import re
import time
from functools import partial
from pathlib import Path

import pytest

from flows.pipeline import Feature
from node_agent import affinity, audit
from node_agent.affinity import forget_idle
from node_agent.controllers import Controllers
from node_agent.generation import NewestGeneration
from openflow.messages import idle_seconds
from openflow.watch import connect
from settings import Agent
from tests.ovs import Ovs
from tests.waiting import wait_until

from .served import running

LEARNED = int(Feature.LEARNED) << 56


def add(ovs: Ovs, cookie: int, client: str, priority: int = 100) -> None:
    flow = f"cookie={cookie:#x},table=62,priority={priority},ip,reg2=7,nw_src={client}"
    ovs.ofctl("add-flow", str(ovs.mgmt), f"{flow},actions=set_field:9->reg3")


def forget(ovs: Ovs, longest: int) -> int:
    async def story() -> int:
        async with connect(ovs.mgmt) as switch:
            return await forget_idle(switch, await switch.dump_flows(), longest)

    return asyncio.run(story())


def clients(ovs: Ovs) -> list[str]:
    return sorted(re.findall(r"nw_src=([\d.]+)", ovs.ofctl("dump-flows", str(ovs.mgmt))))


def idle(ovs: Ovs) -> list[int | None]:
    async def story() -> list[int | None]:
        async with connect(ovs.mgmt) as switch:
            return [idle_seconds(flow) for flow in await switch.dump_flows(62)]

    return asyncio.run(story())


def test_only_what_has_been_idle_for_that_long(ovs: Ovs) -> None:
    add(ovs, LEARNED | 2, "10.0.0.1")
    add(ovs, LEARNED | 2, "10.0.0.2", priority=101)
    add(ovs, LEARNED | 1, "10.0.0.3")  # the switch's own to end: at most `longest`
    add(ovs, LEARNED | 3600, "10.0.0.4")
    add(ovs, LEARNED + (1 << 56) | 2, "10.0.0.5")  # nobody's, and as old
    add(ovs, 2, "10.0.0.6")
    everybody = clients(ovs)
    assert forget(ovs, longest=1) == 0
    assert clients(ovs) == everybody
    time.sleep(2.2)
    assert forget(ovs, longest=1) == 2
    assert clients(ovs) == ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    assert forget(ovs, longest=1) == 0


def test_a_packet_makes_it_young_again(ovs: Ovs) -> None:
    ovs.port_up("p1", 1)
    entry = "table=0,ip,actions=set_field:7->reg2,resubmit(,62)"
    ovs.ofctl("add-flow", str(ovs.mgmt), entry)
    add(ovs, LEARNED | 2, "10.0.0.1")
    add(ovs, LEARNED | 2, "10.0.0.2")
    wait_until(lambda: all((seconds or 0) >= 2 for seconds in idle(ovs)))
    packet = (
        "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),"
        "ipv4(src=10.0.0.2,dst=10.0.0.9,proto=17,tos=0,ttl=64,frag=no),udp(src=1,dst=2)"
    )
    pid = (ovs.directory / "ovs-vswitchd.pid").read_text().strip()
    target = f"{ovs.directory}/ovs-vswitchd.{pid}.ctl"
    ovs.run("ovs-appctl", "-t", target, "netdev-dummy/receive", "p1", packet)
    wait_until(lambda: min(seconds or 0 for seconds in idle(ovs)) < 2)
    assert forget(ovs, longest=1) == 1
    assert clients(ovs) == ["10.0.0.2"]


def test_the_look_at_the_switch_ends_it_without_a_controller(
    ovs: Ovs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affinity, "forget_idle", partial(forget_idle, longest=1))
    monkeypatch.setattr(affinity, "COOKIE", LEARNED)
    monkeypatch.setattr(affinity, "COOKIE_MASK", 0xFF << 56)
    agent = Agent(
        node="node1", controllers=("127.0.0.1",), state=tmp_path, audit_interval=0.1, plain_tcp=True
    )
    add(ovs, LEARNED | 2, "10.0.0.1")
    add(ovs, LEARNED | 3600, "10.0.0.2")

    async def story() -> None:
        async with (
            Controllers(agent) as controllers,
            running(
                audit.audit_loop(
                    agent, controllers, ovs.mgmt, NewestGeneration(tmp_path / "generation")
                )
            ),
            asyncio.timeout(60),
        ):
            while await asyncio.to_thread(clients, ovs) != ["10.0.0.2"]:
                await asyncio.sleep(0.1)

    asyncio.run(story())


def test_another_in_its_place_stays(ovs: Ovs) -> None:
    add(ovs, LEARNED | 2, "10.0.0.1")
    add(ovs, LEARNED | 2, "10.0.0.2")
    time.sleep(2.2)

    async def story() -> int:
        async with connect(ovs.mgmt) as switch:
            found = await switch.dump_flows()
            await asyncio.to_thread(add, ovs, LEARNED | 3, "10.0.0.1")
            await asyncio.to_thread(add, ovs, LEARNED | 2, "10.0.0.2", 101)
            return await forget_idle(switch, found, 1)

    asyncio.run(story())
    assert clients(ovs) == ["10.0.0.1", "10.0.0.2"]
