"""What somebody asks to have explained: a cookie, a flow, an object or an address."""

from ipaddress import ip_address
from typing import Final

from controller.explanations.addresses import of_address
from controller.explanations.flows import is_cookie, is_flow_line, of_cookie, of_line
from controller.explanations.objects import of_object
from controller.inventory import Inventory
from controller.object_names import UnknownObject, object_named
from controller.policies.slices import Slices
from controller.programs import Programs
from controller.reports.explanation import Explanation

LONGEST: Final = 4_096
"""Characters of a question."""


def explain(
    inventory: Inventory, programs: Programs, text: str, node: str | None = None
) -> Slices[Explanation]:
    """What `text` is. `node` says whose flow is meant.

    Raises `controller.object_names.UnknownObject`.
    """
    text = text.strip()
    if not text or len(text) > LONGEST:
        raise UnknownObject(f"a question has 1 to {LONGEST:,} characters")
    if node is not None and node not in inventory.view.nodes:
        raise UnknownObject(f"Node {node}: {inventory.nodes.reason(node)}")
    if is_flow_line(text):
        made = yield from of_line(inventory, programs, text, node)
    elif is_cookie(text):
        made = yield from of_cookie(inventory, programs, text, node)
    else:
        try:
            address = ip_address(text)
        except ValueError:
            ref = object_named(inventory, text)
            made = yield from of_object(inventory, programs, text, ref)
        else:
            made = yield from of_address(inventory, programs, text, address)
    return made
