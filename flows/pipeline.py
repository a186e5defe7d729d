"""The whole pipeline as data: tables, register fields, connection marks and zones, priorities.

A packet enters at `Classifier`, and is sent out at `Output` or dropped before. Numbers never
change: an installed flow must mean the same to every version of Sluice. `docs/pipeline.md` is made
from this data.
"""

from typing import Final

from flows.layout import (
    Bits,
    Feature,
    Layout,
    PipelineError,
    Priority,
    RegisterField,
    Table,
)
from flows.registers import (
    BLOCKED,
    CT_LABEL,
    CT_MARK,
    CT_ZONE,
    EGRESS_ADDRESS,
    ENDPOINT,
    FROM_SERVICE,
    KNOWN,
    NEEDS_SNAT,
    REGISTERS,
    RULE_FROM_POD,
    RULE_TO_POD,
    SNAT_ZONE,
    Pass,
    Source,
    Verdict,
)
from flows.tables import TABLES

__all__ = [
    "BLOCKED",
    "CT_LABEL",
    "CT_MARK",
    "CT_ZONE",
    "EGRESS_ADDRESS",
    "ENDPOINT",
    "FROM_SERVICE",
    "KNOWN",
    "LAYOUT",
    "NEEDS_SNAT",
    "REGISTERS",
    "RULE_FROM_POD",
    "RULE_TO_POD",
    "SNAT_ZONE",
    "TABLES",
    "Bits",
    "Feature",
    "Layout",
    "Pass",
    "PipelineError",
    "Priority",
    "RegisterField",
    "Source",
    "Table",
    "Verdict",
]

LAYOUT: Final = Layout.of(TABLES, REGISTERS)
