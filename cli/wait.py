"""`sluice wait`: proof that the switches hold the flows of an object."""

import sys
import time
from typing import Final

import click

from cli.completions import objects
from cli.controller import Controller, RequestError, ask, controller_options, convert
from cli.output import print_json
from controller.reports.convergence import Convergence

USUAL_WAIT: Final = 60.0
PAUSE: Final = 0.5
"""Seconds between two questions."""
NAMED_AT_MOST: Final = 5
"""Nodes that a line of progress names."""


@click.command("wait", short_help="Wait until every switch holds the flows of an object.")
@click.argument("object_name", metavar="OBJECT", shell_complete=objects)
@click.option("--gone", is_flag=True, help="Wait until no switch holds anything of it any more.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=USUAL_WAIT,
    show_default=True,
    metavar="SECONDS",
    help="When to give up; 0: look once.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def wait(
    object_name: str, gone: bool, timeout: float, as_json: bool, controller: Controller
) -> None:
    """Wait until every switch that needs flows for OBJECT is proven to hold them.

    OBJECT is pod/NAMESPACE/NAME, svc/NAMESPACE/NAME, networkpolicy/NAMESPACE/NAME,
    endpointslice/NAMESPACE/NAME, clusternetworkpolicy/NAME or node/NAME. What is meant is the
    object as the controller knows it when you ask: a change reaches it a moment after kubectl has
    made it.

    The proof is the answer of each switch: it has committed the bundle with these flows. "In force"
    is a moment later: when the cache of the switch's datapath follows, too.

    Exit code 1 if the time is over before that; you see which nodes lack it, and why.

    \b
    Does every node send the connections of the Service web to its new endpoints?
      kubectl apply -f web.yaml && sluice wait svc/shop/web
    Is a policy in force everywhere? Fail after ten seconds, for a script:
      sluice wait networkpolicy/shop/deny-all --timeout 10 && ./test-it
    Is nothing of a deleted policy left on any switch?
      kubectl delete -f deny-all.yaml && sluice wait networkpolicy/shop/deny-all --gone
    Which nodes lack it now?
      sluice wait svc/shop/web --timeout 0 --json | jq .lacking
    """  # noqa: D301  click's mark for lines that are to stay as they are
    end = time.monotonic() + timeout
    name = said = ""
    report: Convergence | None = None
    while True:
        try:
            query = {"object": object_name}
            query |= ({"id": name} if name else {}) | ({"gone": ""} if gone else {})
            report = convert(ask(controller, "/v1/wait", query), Convergence)
            name, now = report.id, _sentence(report)
        except RequestError as error:
            # A controller that restarts does not answer for a moment.
            if report is None:
                raise
            now = error.message
        else:
            if report.in_force:
                break
        left = end - time.monotonic()
        if left <= 0:
            break
        if now != said:
            click.echo(now, err=True)
            said = now
        time.sleep(min(PAUSE, left))
    if as_json:
        print_json(report)
    else:
        click.echo(_sentence(report))
    sys.exit(0 if report.in_force else 1)


def _sentence(report: Convergence) -> str:
    if report.pending:
        return report.pending
    if not report.need:
        return f"no switch needs flows for {report.object}"
    counts = f"{report.hold:,} of {report.need:,} switches hold it"
    if report.gone:
        counts = f"it is gone from {report.hold:,} of {report.need:,} switches"
    if report.hold < report.need:
        named = [f"{row.node} ({row.why})" for row in report.lacking[:NAMED_AT_MOST]]
        more = report.need - report.hold - len(named)
        others = f" and {more:,} more" if more > 0 else ""
        return f"{counts}; {'not from' if report.gone else 'lacking'}: {', '.join(named)}{others}"
    if report.last is None or report.in_force_at is None:
        return counts
    later = "" if report.last.exact else " at the latest"
    force = "since" if report.in_force else "from"
    return (
        f"{counts}, last at {_clock(report.last.at)} ({report.last.node}){later};"
        f" in force {force} {_clock(report.in_force_at)}"
    )


def _clock(at: float) -> str:
    """`14:02:07.312`, local time."""
    thousandths = int(at * 1000) % 1000
    return f"{time.strftime('%H:%M:%S', time.localtime(at))}.{thousandths:03}"
