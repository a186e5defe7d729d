"""Where the controller serves agents. In each path `{node}` is the name of the agent's own Node."""

from typing import Final

CONFIG: Final = "/v1/nodes/{node}/config"
"""GET: `NodeConfig`. A long poll, see `AFTER`."""
SERVICES: Final = "/v1/nodes/{node}/services"
"""GET: `NodeServices`. A long poll, see `AFTER`."""
ROUTES: Final = "/v1/nodes/{node}/routes"
"""GET: `PeerRoutes`. A long poll, see `AFTER`."""
DIGEST: Final = "/v1/nodes/{node}/digest"
"""POST: `SwitchDigest`; the answer is a `Verdict`."""
PROBLEMS: Final = "/v1/nodes/{node}/problems"
"""POST: `NodeProblems`; the answer is 204 without a body."""
ADDRESSES: Final = "/v1/nodes/{node}/addresses"
"""POST: `NodeAddresses`; the answer is 204 without a body."""
GRANTS: Final = "/v1/nodes/{node}/grants"
"""GET: `wire.address_grants.AddressDuties`, a long poll, see `AFTER`. POST: `GrantRequest`; the
answer is `Granted`."""
DENIALS: Final = "/v1/nodes/{node}/denials"
"""POST: `NodeDenials`; the answer is 204 without a body."""
EGRESS: Final = "/v1/nodes/{node}/egress"
"""POST: `wire.egress.EgressUse`; the answer is 204 without a body."""
QUESTIONS: Final = "/v1/nodes/{node}/questions"
"""GET: `wire.questions.NodeQuestions`. A long poll, without `AFTER`."""
ANSWER: Final = "/v1/nodes/{node}/answers/{question}"
"""POST: a `wire.questions.Answer`; the answer has no body. 410: nobody waits for it."""
BGP: Final = "/v1/nodes/{node}/bgp"
"""GET: `wire.bgp.NodeBGP`. A long poll, see `AFTER`."""
BGP_SESSIONS: Final = "/v1/nodes/{node}/bgp/sessions"
"""POST: `wire.bgp.NodeSessions`; the answer is 204 without a body."""
CERTIFICATE: Final = "/v1/nodes/{node}/certificate"
"""POST: a PKCS #10 request in PEM, with a ServiceAccount token (`Authorization: Bearer`); the
answer is a certificate in PEM."""

AFTER: Final = "after"
"""Query of a long poll: the revision that the agent has; the answer waits for another one."""
WAIT: Final = "wait"
"""Query of a long poll: seconds after which the answer is 304."""
AGENT: Final = "agent"
"""Query of `QUESTIONS`: the version of the agent."""
OPEN_VSWITCH: Final = "ovs"
"""Query of `QUESTIONS`: the version of Open vSwitch on the agent's node."""
MAX_WAIT: Final = 60.0
"""Seconds that the controller holds a long poll at most."""
MAX_CERTIFICATE_REQUEST: Final = 4096
"""Bytes of a certificate request. One for a P-256 key has about 400."""


def path_for(path: str, node: str, **more: str) -> str:
    """The path for one node."""
    return path.format(node=node, **more)
