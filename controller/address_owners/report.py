"""Who has which address, and why: the report of `sluice addresses`."""

from collections.abc import Generator
from ipaddress import IPv4Address
from typing import Final

from controller.address_owners.claims import considered, ownership_order
from controller.address_owners.grants import Ownership
from controller.address_owners.owners import AddressOwners
from controller.address_owners.standing import WORDS, Standing
from controller.reports.addresses import AddressList, AddressRow, CandidateRow

MAX_ROWS: Final = 16
"""Candidates of one address that are listed."""


def addresses(owners: AddressOwners) -> Generator[None, None, AddressList]:
    """The report, in steps."""
    rows = []
    for address in sorted(owners.grants.addresses):
        found = owners.grants.addresses.get(address)
        if found is not None:
            rows.append(_row(owners, address, found))
        yield
    return AddressList(decides=owners.grants.decides(owners.now()), addresses=tuple(rows))


def _row(owners: AddressOwners, address: IPv4Address, found: Ownership) -> AddressRow:
    now = owners.now()
    nodes = ownership_order(address, considered(found.claim.candidates))
    # As they are chosen: the standing first. `sorted` keeps the order of equal ones.
    nodes.sort(key=owners.standing)
    rows = [_candidate(owners, node, now) for node in nodes]
    kind, namespace, name = found.claim.subject
    mac, _, until = owners.conflicts.get(address, ("", "", 0.0))
    return AddressRow(
        str(address),
        kind,
        namespace,
        name,
        found.owner,
        round(max(found.until - now, 0.0), 3) if found.owner else 0.0,
        _reason(owners, found, rows, now),
        found.claim.announce,
        found.claim.gated,
        tuple(rows[:MAX_ROWS]),
        max(len(found.claim.candidates) - MAX_ROWS, 0),
        mac if until > now else "",
    )


def _candidate(owners: AddressOwners, node: str, now: float) -> CandidateRow:
    standing = owners.standing(node)
    words = WORDS[standing]
    is_there = owners.grants.is_present(node, now)
    if standing is not Standing.NEVER and not is_there:
        words += ", but its agent does not answer"
    return CandidateRow(node, words, is_able=is_there and standing is not Standing.NEVER)


def _reason(owners: AddressOwners, found: Ownership, rows: list[CandidateRow], now: float) -> str:
    grants = owners.grants
    if not grants.leads:
        return "the node itself says so; this controller does not lead" if found.owner else ""
    if not grants.decides(now):
        wait = f"this controller gives addresses in {grants.opens - now:.1f} s"
        return f"it had the address before; {wait}" if found.owner else wait
    first = next((row.node for row in rows if row.is_able), "")
    if not found.owner:
        return f"{first} is offered it" if first else "no candidate can have it"
    if found.is_revoked:
        return f"it is to release the address: {_why_not(owners, found)}"
    if found.owner == first:
        return f"the first of {len(found.claim.candidates)} candidates that can have it"
    return f"it had the address before {first} could, and keeps it" if first else "it keeps it"


def _why_not(owners: AddressOwners, found: Ownership) -> str:
    if found.owner not in found.claim.candidates:
        return "it is no candidate any more"
    return WORDS[owners.standing(found.owner)]
