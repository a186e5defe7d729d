"""The model's switch and a real one answer alike."""

import asyncio
import random

from flows.features.state import TABLE, generation_of
from openflow.batch import Batch, GenerationSet
from openflow.errors import NotWriter
from openflow.messages import Role
from openflow.switch import RequestRejected
from openflow.watch import connect
from tests.model.switch import Switch, is_older
from tests.waiting import wait_until

RESTARTS, TURNS = 4, 60
GENERATIONS = (0, 1, 2, 3, 1 << 62, (1 << 63) + 1, (1 << 64) - 1)


def test_a_generation_is_older_at_a_negative_distance_of_64_bits():
    assert is_older(1, 2)
    assert not is_older(2, 2)
    assert not is_older(3, 2)
    assert is_older((1 << 64) - 1, 0)
    assert not is_older(0, (1 << 64) - 1)


def test_open_vswitch_arbitrates_roles_as_the_model_does(ovs):
    async def compare():
        turns, model = random.Random(15), Switch((None, None))  # noqa: S311
        for _ in range(RESTARTS):
            async with connect(ovs.mgmt) as first, connect(ovs.mgmt) as second:
                model = model.connect(0).connect(1)
                for _ in range(TURNS):
                    replica = turns.randrange(2)
                    model = await turn(turns, model, replica, (first, second)[replica])
            ovs.stop_switch()
            ovs.start_switch()
            wait_until(ovs.listens)
            model = model.restart(0)

    asyncio.run(compare())


async def turn(turns, model, replica, switch):
    generation = turns.choice(GENERATIONS)
    if turns.random() < 0.6:
        role = turns.choice((Role.MASTER, Role.SLAVE))
        after = model.request_role(replica, role, generation)
        assert await granted(switch, role, generation) == (after is not None)
        return after or model
    after = model.write(replica, generation % 100)
    assert await written(switch, generation % 100) == (after is not None)
    found = [generation_of(each.table, each.cookie) for each in await switch.dump_flows(TABLE)]
    assert (found or [0]) == [(after or model).stored]
    return after or model


async def granted(switch, role, generation):
    try:
        await switch.request_role(role, generation)
    except RequestRejected:
        return False
    return True


async def written(switch, generation):
    try:
        await switch.apply(Batch.of(first=[GenerationSet(generation)]))
    except NotWriter:
        return False
    return True
