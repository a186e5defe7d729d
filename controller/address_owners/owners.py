"""Who has which address of the cluster: `Grants` with a clock, the election and those that ask."""

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Collection, Mapping
from ipaddress import IPv4Address
from itertools import count
from typing import Final

import msgspec
import structlog

from controller.address_owners.claims import MAX_ADDRESSES, Claim
from controller.address_owners.grants import PRESENT, Answer, Grants
from controller.address_owners.standing import Standing
from controller.leadership import Leadership, clock
from controller.problems import OWNERS, Problems, Subject
from controller.rates import Rates
from flows.refs import ObjectRef
from flows.view import Key
from wire.address_grants import AddressDuties, Granted, GrantRequest, encode
from wire.sentences import readable

log = structlog.get_logger()

Follower = Callable[[Collection[IPv4Address]], set[Key]]
"""Called with the addresses whose owner changed; returns the keys of the view it changed."""

COLLECTED: Final = 0.05
"""Seconds in which agents that come are collected, before they are offered something."""
VACANT: Final = 5.0
"""Seconds after which an address without an owner is reported."""
CONFLICT: Final = 90.0
"""Seconds for which another host that has an address is reported. Agents look every 30 s."""
_LOOK: Final = 1.0
"""Seconds between two looks at what has to be reported, while something has."""


class AddressOwners:
    """Chooses one owner for each claimed address."""

    def __init__(self, problems: Problems, clock: Callable[[], float] = clock) -> None:
        self.owners: Final[dict[IPv4Address, str]] = {}
        """By address, the name of the node that has it now. An address without an owner is absent.
        A controller that does not lead has what the owners themselves say."""
        self.followers: Final[list[Follower]] = []
        self.on_move: Callable[[], object] = lambda: None
        """Called when the leader gives an address to another node, or takes it from one."""
        self.grants: Final = Grants(
            lambda node: self._standings.get(node, Standing.NEVER), self._new_number
        )
        self.conflicts: Final[dict[IPv4Address, tuple[str, str, float]]] = {}
        """By address: the MAC of another host that has it, the node that says so, and until when
        this is believed."""
        self._problems = problems
        self._clock = clock
        self._leadership: Leadership | None = None
        self._absorb: Callable[[set[Key]], None] = lambda _: None
        self._term: tuple[int, float] | None = None
        """Of the leadership that `grants` knows of."""
        self._opened_for: tuple[int, float] | None = None
        """The term in which all agents were told their duties."""
        self._is_asked = False
        """Whether an agent has asked. Rule 5 needs that a controller begins to lead, here, only
        when agents reach it."""
        self._sources: dict[str, Mapping[IPv4Address, Claim]] = {}
        self._refused: dict[ObjectRef, str] = {}
        self._gated: dict[frozenset[str], list[IPv4Address]] = {}
        """By candidates, the gated addresses."""
        self._announcing: set[frozenset[str]] = set()
        """Candidates for an address whose owner answers ARP."""
        self._standings: dict[str, Standing] = {}
        self._numbers = count(1)
        self._first_number = 0
        self._polls: dict[str, int] = {}
        """Long polls that wait, by node."""
        self._changes: dict[str, asyncio.Event] = {}
        """What wakes these."""
        self._review_at: asyncio.TimerHandle | None = None
        self._warnings = Rates(0.1, 3, clock)

    # --- what the cluster wants ---

    def want(self, source: str, claims: Mapping[IPv4Address, Claim]) -> None:
        """Set all claims of one source ("load balancer", "egress"), in place of its last ones.

        An address that another source claims already stays with that one, which is reported. Cheap
        where little has changed; may be called on every change.
        """
        self._sources[source] = dict(claims)
        merged: dict[IPv4Address, Claim] = {}
        refused: dict[ObjectRef, list[str]] = {}
        # What was first stays first.
        known = self.grants.addresses
        room = MAX_ADDRESSES - len(known.keys() & set().union(*self._sources.values()))
        for own in self._sources.values():
            for address, claim in own.items():
                before = merged.get(address)
                is_new = before is None and address not in known
                if before is not None and before.subject != claim.subject:
                    why = f"{address} is {before.subject}'s already"
                elif is_new and not room:
                    why = f"{address} gets no owner: the cluster has {MAX_ADDRESSES} such addresses"
                else:
                    merged[address] = claim
                    room -= is_new
                    continue
                refused.setdefault(claim.subject, []).append(why)
        self._refused = {subject: "; ".join(each[:3]) for subject, each in refused.items()}
        self.grants.want(merged)
        announcing = {each.candidates for each in merged.values() if each.announce}
        gated: dict[frozenset[str], list[IPv4Address]] = {}
        for address, claim in merged.items():
            if claim.gated:
                gated.setdefault(claim.candidates, []).append(address)
        if (gated, announcing) != (self._gated, self._announcing):
            self._gated, self._announcing = gated, announcing
            self.grants.woken.update(self._polls)
        for address in self.conflicts.keys() - merged.keys():
            del self.conflicts[address]
        self._report(self._clock())
        self._review_in(0.0)

    def set_standing(self, node: str, standing: Standing | None) -> None:
        """What the Node's object says; None: there is no such Node."""
        if self._standings.get(node) == standing:
            return
        if standing is None:
            del self._standings[node]
            self.grants.remove_node(node)
        else:
            self._standings[node] = standing
        self._review_in(0.0)

    def standing(self, node: str) -> Standing:
        """What the Node's object says."""
        return self._standings.get(node, Standing.NEVER)

    # --- when something may be granted ---

    def start(self, leadership: Leadership, absorb: Callable[[set[Key]], None]) -> None:
        """Follow this leadership. `absorb` is told the keys that followers return."""
        self._leadership, self._absorb = leadership, absorb
        leadership.tell(self)

    def lead(self) -> None:
        """Begin at once: nobody may ask anything soon."""
        self._review_in(0.0)

    def follow(self) -> None:
        """Decide nothing any more."""
        self._review_in(0.0)

    def follow_next(self) -> None:
        """Nothing changes here."""

    def now(self) -> float:
        """As `grants` counts time."""
        return self._clock()

    def _follow_leadership(self, now: float) -> None:
        leadership = self._leadership
        if leadership is None or not leadership.holds():
            if self.grants.leads:
                self.grants.follow()
                self.grants.woken.update(self._polls)
            self._term = None
        elif self._is_asked and self._term != (leadership.generation, leadership.began):
            self._term = leadership.generation, leadership.began
            self.grants.lead(now, leadership.others_until)
            self._numbers, self._first_number = count(1), secrets.randbits(62) >> 20 << 20
            log.info(
                "addresses get new owners in a moment", seconds=round(self.grants.opens - now, 1)
            )

    def _new_number(self) -> int:
        return self._first_number + next(self._numbers)

    def _review_in(self, seconds: float) -> None:
        if not self._is_asked:
            return  # Nobody is there who could have an address.
        loop = asyncio.get_running_loop()
        if self._review_at is not None:
            if self._review_at.when() <= loop.time() + seconds:
                return
            self._review_at.cancel()
        self._review_at = loop.call_later(seconds, self._review)

    def _review(self) -> None:
        self._review_at = None
        now = self._clock()
        self._follow_leadership(now)
        did_decide = self.grants.decides(now)
        due = self.grants.review(now)
        if did_decide and self._opened_for != self._term:
            self._opened_for = self._term
            self.grants.woken.update(self._polls)
        is_vacant = self._report(now)
        self._publish()
        if due < float("inf") or is_vacant:
            self._review_in(min(max(due - now, 0.0), _LOOK if is_vacant else due - now))

    def _publish(self) -> None:
        """Tell everybody what has changed."""
        grants = self.grants
        woken, changed = set(grants.woken), set(grants.changed)
        grants.woken.clear()
        grants.changed.clear()
        for node in woken & self._changes.keys():
            self._changes.pop(node).set()
        moved = set()
        for address in changed:
            found = grants.addresses.get(address)
            before, owner = self.owners.get(address, ""), found.owner if found else ""
            if owner == before:
                continue
            moved.add(address)
            if owner:
                self.owners[address] = owner
            else:
                del self.owners[address]
            if grants.leads:
                self.on_move()
                log.info(
                    "the owner of an address", address=str(address), node=owner, before=before,
                    subject=str(found.claim.subject) if found else "", limit_by=str(address),
                )  # fmt: skip
        if moved:
            touched: set[Key] = set()
            for follower in self.followers:
                touched |= follower(moved)
            if touched:
                self._absorb(touched)

    def _report(self, now: float) -> bool:
        """Report what is wrong; whether something has no owner."""
        told: dict[ObjectRef, list[str]] = {s: [text] for s, text in self._refused.items()}
        is_vacant = False
        for address, found in self.grants.addresses.items() if self.grants.decides(now) else ():
            if found.owner or found.without_owner is None:
                continue
            is_vacant = True
            if now - found.without_owner >= VACANT:
                told.setdefault(found.claim.subject, []).append(
                    f"no node has {address}: {self._why_nobody(found.claim, now)}"
                )
        for address, (mac, node, until) in list(self.conflicts.items()):
            if until <= now:
                del self.conflicts[address]
                continue
            told.setdefault(self.grants.addresses[address].claim.subject, []).append(
                f"another host on the link of Node {node} has {address}, too: its MAC is {mac}"
            )
        sentences: dict[Subject, str] = {s: "; ".join(each[:3]) for s, each in told.items()}
        self._problems.replace_all(OWNERS, sentences)
        return is_vacant or bool(self.conflicts)

    def _why_nobody(self, claim: Claim, now: float) -> str:
        if not claim.candidates:
            return "there is no candidate"
        able = {node for node in claim.candidates if self.standing(node) is not Standing.NEVER}
        if not able:
            return f"all {len(claim.candidates)} candidates are excluded"
        there = sum(self.grants.is_present(node, now) for node in able)
        return f"of {len(able)} candidates, the agents of {there} answer"

    # --- what agents ask ---

    def request(self, node: str, identity: str, request: GrantRequest) -> Granted:
        """Take the request of a node's agent. `identity`: of this process."""
        self._is_asked = True
        now = self._clock()
        self._follow_leadership(now)
        answer = self.grants.request(node, now, request.held, request.wanted, request.released)
        if request.leaves:
            self.grants.leaves(node)
        self._note(node, request, answer, now)
        if self.grants.changed or self.grants.woken:
            self._publish()
        # At once, if it gives something back: somebody else can have it.
        self._review_in(0.0 if request.released else COLLECTED)
        leadership = self._leadership
        leader = leadership.leader if leadership is not None else ""
        return Granted(identity, answer.leads, leader[:512], tuple(answer.granted))

    def _note(self, node: str, request: GrantRequest, answer: Answer, now: float) -> None:
        for address, mac in request.conflicts:
            # `owners` may still have what nobody claims any more.
            if self.owners.get(address) == node and address in self.grants.addresses:
                self.conflicts[address] = mac, node, now + CONFLICT
        if answer.strange and self._warnings.allows(node):
            log.warning(
                "a node asks for addresses that are not for it", node=readable(node),
                addresses=[str(each) for each in answer.strange[:5]], limit_by=node,
            )  # fmt: skip

    def waiting(self, node: str) -> int:
        """Long polls of the node that wait."""
        return self._polls.get(node, 0)

    async def duties(self, node: str, after: str | None, wait: float) -> AddressDuties | None:
        """What the node should have, once this differs from the revision `after`.

        None: it does not, for so many seconds.
        """
        self._is_asked = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        self.grants.seen(node, self._clock() + wait + PRESENT)
        self._polls[node] = self._polls.get(node, 0) + 1
        self._review_in(COLLECTED)
        try:
            while True:
                # Two polls of one node, after its agent's restart, share it.
                changed = self._changes.setdefault(node, asyncio.Event())
                found = self._duties(node)
                if found.revision != after:
                    return found
                async with asyncio.timeout_at(deadline):
                    await changed.wait()
        except TimeoutError:
            return None
        finally:
            self._polls[node] -= 1
            if not self._polls[node]:
                del self._polls[node]
                self._changes.pop(node, None)
                self.grants.gone(node, self._clock())

    def _duties(self, node: str) -> AddressDuties:
        now = self._clock()
        self._follow_leadership(now)
        leadership = self._leadership
        generation = leadership.generation if leadership is not None else 0
        if leadership is None or not self.grants.decides(now):
            return AddressDuties(node, f"none.{generation}", leads=False)
        known = self.grants.addresses
        found = AddressDuties(
            node,
            "",
            leads=True,
            generation=generation,
            addresses=tuple(
                (address, known[address].claim.announce)
                for address in self.grants.duties(node, now)
            ),
            gated=tuple(
                address
                for candidates, addresses in self._gated.items()
                if node in candidates
                for address in addresses
            ),
            may_answer=any(node in candidates for candidates in self._announcing),
        )
        revision = hashlib.sha256(encode(found)).hexdigest()[:16]
        return msgspec.structs.replace(found, revision=revision)
