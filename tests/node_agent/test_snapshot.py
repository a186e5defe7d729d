"""What is kept of a real bridge, and what comes of it."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flows.features import state
from flows.flow import ApplyMeter, Flow, Meter, match
from node_agent import snapshot
from node_agent.snapshot import Snapshot, SnapshotError
from openflow import codec
from openflow.batch import Batch
from openflow.messages import InstalledFlow, Multipart, group_set_by
from openflow.switch import Rejected
from openflow.watch import connect
from tests.openflow import samples
from tests.ovs import Ovs


def taken(ovs: Ovs) -> Snapshot:
    async def take() -> Snapshot:
        async with connect(ovs.mgmt) as switch:
            return Snapshot.of(
                await switch.dump_flows(),
                await switch.dump_groups(),
                (await switch.dump_meters()).values(),
            )

    return asyncio.run(take())


def empty(ovs: Ovs) -> None:
    async def delete() -> None:
        async with connect(ovs.mgmt) as switch:
            dump = await switch.dump_flows()
            meters = await switch.dump_meters()
            groups = [group.id for group in await switch.dump_groups()]
            await switch.apply(
                Batch.of(
                    deletes={f.cookie for f in dump}, meters_delete=meters, groups_delete=groups
                )
            )

    asyncio.run(delete())


def restore(ovs: Ovs, kept: Snapshot) -> dict[int, Meter]:
    async def put() -> dict[int, Meter]:
        async with connect(ovs.mgmt) as switch:
            await kept.restore(switch)
            return await switch.dump_meters()

    return asyncio.run(put())


def file(tmp_path: Path) -> Path:
    return tmp_path / "bridge.openflow"


def test_what_was_saved_comes_back_and_nothing_else(ovs: Ovs, tmp_path: Path) -> None:
    flows, meters = samples.compiled()
    flows += samples.for_services()
    groups = samples.groups()
    ovs.install(flows, [*meters, Meter(5, 10, 10)], groups)
    ours = ovs.dump()
    our_groups = sorted(ovs.ofctl("dump-groups", str(ovs.mgmt)).splitlines()[1:])
    ovs.ofctl("add-group", str(ovs.mgmt), "group_id=7,type=select,bucket=drop")
    ovs.ofctl("add-flow", str(ovs.mgmt), "table=3,priority=9,actions=drop")
    ovs.ofctl("add-flow", str(ovs.mgmt), "cookie=0x0a00000000000001,table=3,actions=drop")
    ovs.ofctl("add-meter", str(ovs.mgmt), "meter=17,kbps,band=type=drop,rate=1000")

    before = taken(ovs)
    snapshot.save(file(tmp_path), before)
    loaded = snapshot.load(file(tmp_path))
    assert loaded == before
    assert len(loaded.groups) == len(groups)
    # Some of it may have come back before the agent was killed.
    for left, left_groups in (([], []), (meters, groups[:2])):
        empty(ovs)
        ovs.install([], left, left_groups)
        assert restore(ovs, loaded) == {meter.id: meter for meter in meters}
        assert ovs.dump() == ours
        assert sorted(ovs.ofctl("dump-groups", str(ovs.mgmt)).splitlines()[1:]) == our_groups
        assert taken(ovs) == before, "byte for byte"

    shown = ovs.ofctl("ofp-parse", str(file(tmp_path)))
    assert shown.count(" cookie=0x") == len(flows)
    assert "nw_dst=10.244.1.2" in shown
    assert shown.count("n_packets=?") == len(flows)


def test_more_flows_than_one_message_holds(ovs: Ovs, tmp_path: Path) -> None:
    flows = [samples.flow(number) for number in range(2000)]
    first = Flow(2, 0, 0, match({}), (), "lets packets in")
    ovs.install([*flows, first])

    before = taken(ovs)
    assert len(before.flows) == 2001
    assert before.flows[-1].cookie == first.cookie, "the first table comes last"
    snapshot.save(file(tmp_path), before)
    assert file(tmp_path).stat().st_size > 1 << 17
    assert snapshot.load(file(tmp_path)) == before


def test_the_seals_come_after_all_they_vouch_for(ovs: Ovs) -> None:
    flows = [samples.flow(number) for number in range(2000)]
    last = Flow(2, 0, 0, match({}), (ApplyMeter(16),), "lets packets in")
    seal = state.seal("node1", len(flows) + 1, 0)
    ovs.install([*flows, last, seal], [Meter(16, 1, 1)])
    before = taken(ovs)
    assert len(before.flows) == 2002
    empty(ovs)
    with pytest.raises(Rejected, match="table 0"):
        restore(ovs, replace(before, meters=()))
    assert not any("table=State" in flow for flow in ovs.dump())
    restore(ovs, before)
    assert taken(ovs) == before


def test_an_empty_or_partial_bridge_never_takes_a_good_ones_place(ovs: Ovs, tmp_path: Path) -> None:
    ovs.install([Flow(2, 0, 0, match({}), (), "lets packets in"), samples.flow(1)])

    good = taken(ovs)
    snapshot.save(file(tmp_path), good)
    for left in ([], [samples.flow(1)]):
        empty(ovs)
        ovs.install(left)
        # A flow by hand in the first table is nobody's of ours.
        ovs.ofctl("add-flow", str(ovs.mgmt), "table=0,actions=drop")
        partial = taken(ovs)
        assert not partial.lets_packets_in
        with pytest.raises(ValueError, match="lets nobody in"):
            snapshot.save(file(tmp_path), partial)
        assert snapshot.load(file(tmp_path)) == good


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    raw = bytes(24) + b"\0\1\0\4" + bytes(4) + b"\0\0\0\4" + bytes(4)
    flow = InstalledFlow(0, 0, 0, 0, 0, len(raw).to_bytes(2, "big") + raw[2:])
    good = Snapshot((flow,), (), ())
    snapshot.save(file(tmp_path), good)
    broken = Snapshot((flow,), (), (Meter(16, -1, 0),))
    with pytest.raises(Exception, match="argument"):
        snapshot.save(file(tmp_path), broken)
    assert snapshot.load(file(tmp_path)) == good


def test_a_file_from_before_there_were_groups(ovs: Ovs, tmp_path: Path) -> None:
    ovs.install([Flow(2, 0, 0, match({}), (), "lets packets in")])
    before = taken(ovs)
    snapshot.save(file(tmp_path), before)
    without_groups = b"".join(
        header_and_body
        for header_and_body in replies(file(tmp_path).read_bytes())
        if header_and_body[9] != Multipart.GROUP_DESC
    )
    assert len(without_groups) == file(tmp_path).stat().st_size - 16
    file(tmp_path).write_bytes(without_groups)
    assert snapshot.load(file(tmp_path)) == before


def replies(content: bytes) -> Iterator[bytes]:
    while content:
        length = int.from_bytes(content[2:4], "big")
        yield content[:length]
        content = content[length:]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = file(tmp_path)
    assert snapshot.load(path) is None
    raw = bytes(24) + b"\0\1\0\4" + bytes(4) + b"\0\0\0\4" + bytes(4)
    flow = InstalledFlow(0, 0, 0, 0, 0, len(raw).to_bytes(2, "big") + raw[2:])
    group = group_set_by(codec.group_set(samples.groups()[0]))
    snapshot.save(path, Snapshot((flow,), (group,), (Meter(16, 1, 1),)))
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SnapshotError, match=str(path)):
            snapshot.load(path)
    for spoilt in (b"\xff" * 40, b"\6\x13\0\7" + bytes(40), bytes(9)):
        path.write_bytes(spoilt)
        with pytest.raises(SnapshotError, match=str(path)):
            snapshot.load(path)
    os.truncate(path, 1 << 40)
    with pytest.raises(SnapshotError, match="longer than 268435456 bytes"):
        snapshot.load(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SnapshotError, match="not a regular file"):
        snapshot.load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(SnapshotError, match="Is a directory"):
        snapshot.load(path)


def test_a_snapshot_is_on_disk_before_it_has_its_name(
    ovs: Ovs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ovs.install(*samples.compiled())
    path, steps = file(tmp_path), []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        steps.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def renamed(part: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(part, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    path.touch(mode=0o644)
    snapshot.save(path, taken(ovs))
    assert steps == ["sync bridge.part", "rename", f"sync {tmp_path.name}"]
    assert path.stat().st_mode & 0o777 == 0o600, "it shows the whole node to its reader"
