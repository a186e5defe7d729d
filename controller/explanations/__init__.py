"""What a cookie, a flow, an object or an address is: `sluice explain`, of a cluster or offline."""

from controller.explanations.question import explain
from controller.programs import CompiledPrograms, Programs

__all__ = ["CompiledPrograms", "Programs", "explain"]
