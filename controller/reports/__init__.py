"""Reports: what a controller answers to people, as typed, versioned structs.

They need nothing of the controller, so that the command line, a page or a script can read them.
`docs/reports.md` is made from them.
"""

from controller.reports.report import VERSION, Report

__all__ = ["VERSION", "Report"]
