"""What is made of the guest's measurements of the mode noEncap."""

import msgspec
import pytest

from bench.kernel_guest import Results, Turn
from bench.noencap import figures_of
from bench.noencap_guest import KINDS
from lab import LabError


def turns(*kinds: str) -> bytes:
    rates = {"sluice": 90.0, "routed": 100.0, "bridged": 95.0}
    return msgspec.json.encode(Results([Turn(kind, "direct", 0, rates) for kind in kinds]))


def test_each_kind_of_traffic_has_a_ratio_to_each_rival() -> None:
    ratios = {each.name: each.samples for each in figures_of(turns(*KINDS)) if each.unit == "ratio"}
    for kind in KINDS:
        assert ratios[f"noencap_{kind}_vs_routed"] == [0.9]
        assert ratios[f"noencap_{kind}_vs_bridged"] == [pytest.approx(90 / 95)]


def test_kind_that_was_not_measured_is_named() -> None:
    with pytest.raises(LabError, match="not measured: crr"):
        figures_of(turns("stream", "rr"))
