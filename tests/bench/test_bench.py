"""Every family of figures at its smallest: that it measures, not what."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench import (
    bgp,
    cni,
    fleet,
    flow_push,
    kube_proxy,
    large_fleet,
    pod_ready,
    pods,
    policies,
    policy_api,
    policy_scale,
    service_size,
    services,
    takeover,
    traffic,
    what_if,
)
from bench.figures import (
    MOST_ROUNDS,
    Figure,
    percentile,
    show,
    steady_rounds,
    unsure,
    versus,
    write,
)


def names(figures: list[Figure]) -> set[str]:
    assert all(sample > 0 for figure in figures for sample in figure.samples)
    return {figure.name for figure in figures if figure.aim}


def test_a_large_fleet_is_fed_from_the_bytes_of_an_api_server():
    figures = large_fleet.measure(nodes=4, pods=3, services=5, new_nodes=1, changes=2, churn=0.1)
    values = {figure.name: figure.value for figure in figures}
    assert values["fleet5k_sync_s"] > 0
    assert values["fleet5k_churn_endpoints_ms_p99"] > 0
    assert values["fleet5k_loop_lag_ms_p99.reconnect"] >= 0


def test_a_fleet_comes_in_sync_and_gets_a_new_node():
    figures = fleet.measure(nodes=5, pods=3, rounds=1, new_nodes=1, policies=2)
    assert names(figures) == {
        "fleet_sync_s",
        "fleet_new_node_ms",
        "fleet_rss_mb",
        "policy_fleet_s",
    }


def test_changes_of_policies_are_judged():
    assert names(what_if.measure(policies=20, pods=60, rounds=1)) == {"what_if_s"}


def test_flows_are_pushed_by_both():
    assert names(flow_push.measure(flows=300, rounds=1)) == {"flow_push_vs_ofctl"}


def test_pods_become_ready():
    figures = pod_ready.measure(rounds=1, pods=2)
    assert names(figures) == {"pod_ready_ms_p99", "pod_ready_ten_ms_p99"}


def test_killed_leader_is_replaced():
    assert names(takeover.measure(rounds=1)) == {"takeover_ms_p99"}


def test_routes_are_measured_at_both_routers() -> None:
    assert names(bgp.measure(rounds=2, many=30)) == {"bgp_route_ms", "bgp_30_routes_s"}


def test_both_plugins_plug_in_and_out():
    assert names(cni.measure(rounds=1)) == {"cni_add_vs_bridge", "cni_add_del_vs_bridge"}


def test_both_networks_bind_pods():
    assert names(pods.measure(rounds=1, pods=6)) == {"pods_vs_ovn"}


def test_traffic_flows_on_both():
    figures = traffic.measure(rounds=1, seconds=0.2, policies=4)
    bare = {"stream_vs_bare", "rr_vs_bare", "crr_vs_bare"}
    assert names(figures) == {*bare, "crr_service_vs_direct", "crr_policy_vs_none"}


def test_services_change_and_load_on_both():
    figures = services.measure(services=4, few=2, many=5, rounds=1, loads=1)
    assert names(figures) == {
        "service_update_vs_ovn",
        "service_load_vs_ovn",
        "service_update_10k_vs_10",
    }


def test_a_new_endpoint_serves_by_both_proxies():
    figures = kube_proxy.measure(services=3, rounds=1)
    assert names(figures) == {"service_update_vs_kube_proxy"}


def test_what_a_service_costs_is_counted():
    figures = {figure.name: figure for figure in service_size.measure(services=2)}
    # Its address, its choice, and what its group holds.
    assert figures["flows_per_service"].samples == [3]
    assert figures["groups_per_service"].samples == [1]
    few, many = (figures[f"bytes_per_endpoint_change{of}"] for of in ("", ".of_250"))
    # A bucket more or less, of 80 bytes; but all of them where the datapath chooses among them.
    assert 0 < max(many.samples) < 1000
    assert 1000 < max(few.samples) < 2000


def test_policies_load_and_change_on_both():
    figures = policies.measure(policies=12, users=2, few=3, many=30, rounds=1, loads=1)
    assert names(figures) == {
        "policy_load_s",
        "flows_per_policy",
        "policy_pod_added_ms",
        "policy_label_10k_vs_100",
        "policy_update_vs_ovn",
    }


def test_a_policy_goes_from_the_api_server_to_all_switches():
    figures = policy_api.measure(policies=2, rounds=1, changes=2)
    assert names(figures) == {"policy_api_to_switch_ms", "policy_api_to_switch_ms_p99"}


def test_policies_of_many_nodes_are_compiled():
    figures = {
        figure.name: figure for figure in policy_scale.measure(namespaces=3, nodes=2, rounds=1)
    }
    assert {"policy_scale_s", "policy_scale_mb"} == names([*figures.values()])
    # Of each of 12 pods four of its own, and one to itself. Of a policy with rules a walk and a
    # set of two pods, on each of two nodes.
    assert figures["policy_scale_flows"].samples == [12 * 5 + 6 * 3 * 2]


def test_what_is_written_is_what_the_table_shows(tmp_path: Path):
    figures = versus("x", "ms", [1.0, 4.0, 9.0], ("rival", [1.0, 2.0, 3.0]), at_most=2.0)
    assert figures[0].met
    path = tmp_path / "build" / "bench.json"
    write(path, figures)
    written = json.loads(path.read_text())["figures"]
    assert written["x"] == {"value": 2.0, "unit": "ratio", "samples": [1.0, 2.0, 3.0]}
    assert written["x.rival"]["samples"] == [1.0, 2.0, 3.0]
    console = Console(width=120, record=True)
    show(console, figures)
    assert "≤ 2 met" in console.export_text()


@pytest.mark.parametrize("terminal", [False, True])
def test_no_figure_is_cut_however_narrow_the_terminal(terminal: bool):
    name = "service_update_10k_vs_10.a_name_that_is_longer_than_most"
    figures = [Figure(name, "transactions/s", [65_999.4, 123_456_789.0, 1e9], at_most=1.2)]
    written = io.StringIO()
    show(Console(width=40, file=written, force_terminal=terminal, no_color=True), figures)
    for text in (name, "123,456,789", "65,999", "1,000,000,000", "transactions/s", "missed"):
        assert text in written.getvalue()
    assert "…" not in written.getvalue()


def test_rounds_go_on_while_the_median_is_unsure():
    steady: list[float] = []
    steady.extend(1.0 for _ in steady_rounds(steady, 8))
    assert len(steady) == 8
    wild: list[float] = []
    wild.extend(float(number % 7 + 1) for number in steady_rounds(wild, 8))
    assert len(wild) == 8 * MOST_ROUNDS


def test_a_median_is_as_unsure_as_what_lies_around_it():
    assert unsure([2.0]) == 0
    assert unsure([1.0, 2.0, 3.0]) == 0.5
    assert unsure([*[1.0] * 5, *[2.0] * 90, *[3.0] * 5]) == 0


def test_percentiles_are_samples():
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([1.0, 2.0], 0.5) == 1.0
