"""`sluice top` and `sluice drops`: rates of two snapshots, and what people read."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from cli import counters, drops, top
from cli.main import main
from controller.references import Reference
from controller.reports.counters import (
    Counters,
    DenialRow,
    Denials,
    DropRow,
    NodeCounters,
    ServiceTrafficRow,
    TrafficRow,
)

A = Reference("Pod", "shop", "a")
B = Reference("Pod", "shop", "b")
WEB = Reference("Service", "shop", "web")
AT = time.mktime((2026, 1, 2, 14, 2, 7, 0, 0, -1))


def node(name: str, at: float, times: int, **more: Any) -> NodeCounters:
    """After so many equal steps."""
    return NodeCounters(
        name, AT + at,
        (
            TrafficRow(A, 10 * times, 1_000 * times, 20 * times, 2_000 * times),
            TrafficRow(B, 5, 500, 5, 500),
            TrafficRow(Reference("tunnel", "", name), 7, 700 * times, 8, 800 * times),
            TrafficRow(Reference("gateway", "", name), 0, 0, 0, 0),
        ),
        (ServiceTrafficRow(WEB, 4 * times),),
        (
            DropRow("policy", "denied by the policies of this pod", "DeniedToPod", (A,),
                    3 * times, 300 * times, 0),
            DropRow("guard", "not the pod's own MAC and address", "SpoofGuard",
                    (Reference("cluster", "", ""),), 9, 900, 100),
        ),
        **more,
    )  # fmt: skip


def page(*nodes: NodeCounters, after: str = "", **unread: str) -> Any:
    report = Counters(nodes=nodes, unread=unread, of=3, after=after)
    return msgspec.json.decode(msgspec.json.encode(report))


Ask = Callable[[object, str, Any], Any]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Answers for the questions about counters, in order; the questions are returned."""

    def answer(*pages: Any, denials: tuple[DenialRow, ...] = ()) -> list[Any]:
        asked: list[Any] = []
        given: Iterator[Any] = iter(pages)
        told = Denials(enabled=True, denials=denials, left_out=0)

        def ask(_: object, path: str, query: Any) -> Any:
            if path == "/v1/denials":
                since = float(query["since"])
                rows = tuple(each for each in denials if each.at > since)
                return msgspec.to_builtins(msgspec.structs.replace(told, denials=rows),
                                           str_keys=True) | {"leftOut": 0}  # fmt: skip
            asked.append(query)
            try:
                return next(given)
            except StopIteration:
                raise KeyboardInterrupt from None

        monkeypatch.setattr(counters, "ask", ask)
        monkeypatch.setattr(drops, "ask", ask)
        for module in (top, drops):
            monkeypatch.setattr(module.time, "sleep", lambda _: None)
        return asked

    return answer


def sluice(*words: str) -> Result:
    return CliRunner().invoke(main, [*words])


def test_rates_are_differences_by_time(answered: Any) -> None:
    answered(page(node("n1", 0, 1)), page(node("n1", 2, 5), n2="its switch is not connected"))
    done = sluice("top", "--once", "--json")
    given = msgspec.json.decode(done.stdout)
    assert (given["read"], given["of"], given["seconds"]) == (1, 3, 2.0)
    assert given["unread"] == {"n2": "its switch is not connected"}
    (pod,) = given["pods"]
    assert (pod["object"]["name"], pod["sentBytes"], pod["receivedPackets"]) == ("a", 2_000, 40)
    assert given["services"][0]["connections"] == 8
    (of_node,) = given["nodes"]
    # What came in by the tunnel, the switch got from it.
    assert (of_node["tunnelReceivedBytes"], of_node["tunnelSentBytes"]) == (1_400, 1_600)
    (drop,) = given["drops"]
    assert (drop["reason"], drop["packets"], drop["mostNode"]) == ("policy", 6, "n1")
    assert drop["mostWhy"] == "Pod shop/a: denied by the policies of this pod"


def test_counters_that_begin_anew_make_no_negative_rates(answered: Any) -> None:
    answered(page(node("n1", 0, 100)), page(node("n1", 2, 1)))
    given = msgspec.json.decode(sluice("top", "--once", "--json").stdout)
    assert given["pods"] == given["services"] == []
    assert [(row["reason"], row["packets"]) for row in given["drops"]] == [("policy", 1.5)]


def test_table_for_people(answered: Any) -> None:
    left_out = {"left_out": ("DestinationGuard",)}
    answered(page(node("n1", 0, 1)), page(node("n1", 2, 5, **left_out)))
    done = sluice("top", "--once")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines == [
        "14:02:09 1 of 3 nodes, over 2.0 s",
        "n1: not read, because they are too large: DestinationGuard",
        "",
        "PODS NODE SENT RECEIVED PACKETS",
        "Pod shop/a n1 16.0 kbit/s 32.0 kbit/s 60/s",
        "",
        "SERVICES NEW CONNECTIONS",
        "Service shop/web 8.0/s",
        "",
        "NODES PODS SENT PODS RECEIVED BY TUNNEL BY GATEWAY DROPPED",
        "n1 16.0 kbit/s 32.0 kbit/s 24.0 kbit/s 0.0 bit/s 6.0/s",
        "",
        "DROPPED PACKETS MOST AT BECAUSE",
        "policy 6.0/s n1 Pod shop/a: denied by the policies of this pod",
    ]


def test_all_nodes_are_read_page_by_page(answered: Any) -> None:
    first = (page(node("n1", 0, 1), after="n1"), page(node("n2", 0, 1)))
    second = (page(node("n1", 2, 2)),)
    asked = answered(*first, *second)
    assert sluice("top", "--once", "--all").exit_code == 0
    assert [(query["after"], query["node"]) for query in asked] == [
        ("", []), ("n1", []), ("", ["n1", "n2"]),
    ]  # fmt: skip


def test_without_all_one_page_is_read(answered: Any) -> None:
    many = [node(f"n{n:02}", 0, 1) for n in range(counters.PAGE)]
    later = [node(f"n{n:02}", 1, 1) for n in range(counters.PAGE)]
    asked = answered(page(*many, after="n15"), page(*later))
    assert sluice("top", "--once").exit_code == 0
    assert len(asked) == 2


def test_live_output_ends_with_an_interrupt(answered: Any) -> None:
    answered(*(page(node("n1", 2 * step, step)) for step in range(3)))
    done = sluice("top", "--json")
    assert done.exit_code == 0
    assert [msgspec.json.decode(line)["seconds"] for line in done.stdout.splitlines()] == [2, 2]


def test_drops_newest_first(answered: Any) -> None:
    denial = DenialRow(AT, "n1", A, "to the pod", "10.0.0.1", "policy to the pod denied 22/TCP")
    other = DenialRow(AT, "n2", A, "to the pod", "10.0.0.1", "of another node")
    answered(page(node("n1", 0, 2)), denials=(denial, other))
    done = sluice("drops", "--node", "n1")
    assert done.stdout == (
        "LAST      NODE  REASON  PACKETS  BECAUSE\n"
        "14:02:07  n1    policy  6        Pod shop/a: denied by the policies of this pod"
        "  [DeniedToPod]\n"
        "14:00:27  n1    guard   9        not the pod's own MAC and address  [SpoofGuard]\n"
        "1 of 3 nodes were read; --all reads the others\n"
        "\n"
        "denied by policy\n"
        "  14:02:07  n1  policy to the pod denied 22/TCP\n"
    )
    answered(page(node("n1", 0, 2)))
    only = msgspec.json.decode(sluice("drops", "--reason", "guard", "--json").stdout)
    assert [row["reason"] for row in only["drops"]] == ["guard"]
    assert only["denials"] == []


def test_follow_prints_what_is_new(answered: Any) -> None:
    before = DenialRow(AT, "n1", A, "to the pod", "10.0.0.1", "told before")
    answered(*(page(node("n1", 2 * step, step)) for step in range(1, 4)), denials=(before,))
    done = sluice("drops", "--follow")
    line = "n1  policy  3 packets  Pod shop/a: denied by the policies of this pod  [DeniedToPod]\n"
    assert done.stdout == f"14:02:11  {line}14:02:13  {line}"


def test_follow_bounds_its_lines(answered: Any) -> None:
    def many(count: int) -> NodeCounters:
        rows = tuple(
            DropRow("policy", f"why {n}", "DeniedToPod", (A,), count, count, 0) for n in range(50)
        )
        return msgspec.structs.replace(node("n1", count, count), drops=rows)

    answered(page(many(1)), page(many(2)))
    lines = sluice("drops", "--follow").stdout.splitlines()
    assert lines[0] == f"and {50 - drops.MOST_LINES} more that are not shown"
    assert len(lines) == drops.MOST_LINES + 1


def test_options_that_do_not_go_together() -> None:
    for verb in ("top", "drops"):
        assert "--node does not go with --all" in sluice(verb, "--node", "n1", "--all").stderr
