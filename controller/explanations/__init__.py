"""What a cookie, a flow, an object or an address is: `sluice explain`, of a cluster or offline."""

from controller.explanations.programs import CompiledPrograms, Programs
from controller.explanations.question import explain

__all__ = ["CompiledPrograms", "Programs", "explain"]
