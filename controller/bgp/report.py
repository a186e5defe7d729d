"""The report of peers, sessions and routes, for people."""

import socket
from collections.abc import Generator

from controller.bgp.announcer import Announcer
from controller.bgp.routes import Announced
from controller.inventory import Inventory
from controller.reports.bgp import BGPReport, PeerRow, ReasonRow, RouteRow, SessionRow
from flows.refs import ObjectRef
from wire.bgp import Session


def reported(
    inventory: Inventory, announcer: Announcer, peer: str | None
) -> Generator[None, None, BGPReport]:
    """Every BGPPeer without its routes, or one with them. Raises `KeyError` for an unknown one."""
    # As they are now: some may go between two steps.
    objects = dict(inventory.bgp_peers.objects)
    names = sorted(objects) if peer is None else [objects[peer].metadata.name]
    by_peer: dict[str, list[SessionRow]] = {}
    for node, session in announcer.sessions():
        yield
        by_peer.setdefault(session.peer, []).append(_session(node, session))
    drafts = {each.name: each for each in announcer.judgement.peers}
    rows = []
    for name in names:
        yield
        spec = objects[name].spec
        announced = announcer.announced.get(name, [])
        routes = []
        for each in announced if peer is not None else ():
            yield
            routes.append(_route(inventory, each))
        problems = inventory.problems.of_subject(ObjectRef("BGPPeer", "", name))
        draft = drafts.get(name)
        rows.append(
            PeerRow(
                name=name,
                used=announcer.is_used(name),
                problem="; ".join(each.text for each in problems),
                address=spec.address,
                port=spec.port,
                asn=spec.asn,
                local_asn=spec.local_asn,
                source=spec.from_,
                announce=tuple(sorted(draft.kinds)) if draft else spec.announce or (),
                sessions=tuple(by_peer.get(name, ())),
                routes=tuple(routes),
                route_count=len(announced),
                left_out=announcer.left_out.get(name, 0),
            )
        )
    return BGPReport(controller=socket.gethostname(), peers=tuple(rows))


def _session(node: str, session: Session) -> SessionRow:
    return SessionRow(
        node=node,
        state=session.state,
        since=session.since,
        add_path=session.add_path,
        told=session.told,
        received=session.received,
        ended=session.ended,
        reason=session.reason,
    )


def _route(inventory: Inventory, announced: Announced) -> RouteRow:
    nodes = inventory.view.nodes
    return RouteRow(
        prefix=str(announced.prefix),
        kind=announced.kind,
        nodes=announced.nodes,
        next_hops=tuple(str(nodes[name].address) for name in announced.nodes if name in nodes),
        reasons=tuple(ReasonRow(*each) for each in announced.reasons),
        note=announced.note,
    )
