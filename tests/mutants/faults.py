"""All planted faults, by what the code guards that they are planted in."""

from typing import Final

from tests.mutants.checks import CHECKS
from tests.mutants.controllers import CONTROLLERS
from tests.mutants.egress import EGRESS
from tests.mutants.election import ELECTION
from tests.mutants.fault import Fault
from tests.mutants.identity import IDENTITY
from tests.mutants.load_balancers import LOAD_BALANCERS
from tests.mutants.packets import PACKETS
from tests.mutants.policy import POLICY
from tests.mutants.reports import REPORTS
from tests.mutants.services import SERVICES
from tests.mutants.state import STATE
from tests.mutants.switches import SWITCHES

FAULTS: Final[tuple[Fault, ...]] = (
    *CHECKS, *CONTROLLERS, *EGRESS, *ELECTION, *IDENTITY, *LOAD_BALANCERS, *PACKETS, *POLICY,
    *REPORTS, *SERVICES, *STATE, *SWITCHES,
)  # fmt: skip
