"""Planted faults in what decides who somebody is: the CA, enrolment, TLS, Nodes, Pods, ports."""

from typing import Final

from tests.mutants.fault import Fault

_AUTHORITY = "controller/authority.py"
_ENROLMENT = "controller/enrolment.py"
_TOKENS = "controller/token_review.py"
_NODES = "controller/inventory/nodes.py"
_CLAIMS = "controller/inventory/node_claims.py"
_PODS = "controller/inventory/pods.py"
_PORTS = "controller/inventory/ports.py"
_LISTENER = "openflow/listener.py"
_CA_TESTS = ("tests/controller/test_authority.py",)
_TOKEN_TESTS = ("tests/controller/test_enrolment.py",)
_INVENTORY_TESTS = ("tests/controller/test_inventory.py",)
_LISTENER_TESTS = ("tests/openflow/test_listener.py",)

IDENTITY: Final = (
    Fault(
        "a certificate outlives its CA",
        _AUTHORITY,
        "min(now + life, self.certificate.not_valid_after_utc)",
        "now + life",
        _CA_TESTS,
    ),
    Fault(
        "a certificate begins before its CA",
        _AUTHORITY,
        "max(now - life / _CLOCKS, self.certificate.not_valid_before_utc)",
        "now - life / _CLOCKS",
        _CA_TESTS,
    ),
    Fault(
        "a node's certificate may serve as a controller's",
        _AUTHORITY,
        "x509.ExtendedKeyUsage([use])",
        "x509.ExtendedKeyUsage(\n"
        "                [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]\n"
        "            )",
        _CA_TESTS,
    ),
    Fault(
        "a node's certificate is a CA's",
        _AUTHORITY,
        "x509.BasicConstraints(ca=False, path_length=None)",
        "x509.BasicConstraints(ca=True, path_length=None)",
        _CA_TESTS,
    ),
    Fault(
        "a node's key may sign certificates",
        _AUTHORITY,
        "        key_cert_sign=ca,",
        "        key_cert_sign=True,",
        _CA_TESTS,
    ),
    Fault(
        "an expired CA goes on signing",
        _AUTHORITY,
        "if ours.not_valid_after_utc <= datetime.now(UTC):",
        "if ours.not_valid_after_utc <= datetime.fromtimestamp(0, UTC):",
        _CA_TESTS,
    ),
    Fault(
        "the key of another CA is taken",
        _AUTHORITY,
        "if _public(ours) != _public(secret):",
        "if False:",
        _CA_TESTS,
    ),
    Fault(
        "a certificate that is no CA's is taken for one",
        _AUTHORITY,
        "if not constraints.ca:",
        "if False:",
        _CA_TESTS,
    ),
    Fault(
        "a request with somebody else's key is signed",
        _AUTHORITY,
        "        sound = request.is_signature_valid\n",
        "        sound = True\n",
        _CA_TESTS,
    ),
    Fault(
        "a token without a node claim gets any node's certificate",
        _ENROLMENT,
        "if nodes != [node]:",
        "if nodes and nodes != [node]:",
        _TOKEN_TESTS,
    ),
    Fault(
        "one node's token gets another node's certificate",
        _ENROLMENT,
        "if nodes != [node]:",
        "if not nodes:",
        _TOKEN_TESTS,
    ),
    Fault(
        "a token that names several nodes is good for each",
        _ENROLMENT,
        "if nodes != [node]:",
        "if node not in nodes:",
        _TOKEN_TESTS,
    ),
    Fault(
        "the token of any ServiceAccount is good",
        _TOKENS,
        "if status.user.username not in map(name_of, accounts):",
        "if not status.user.username:",
        _TOKEN_TESTS,
    ),
    Fault(
        "a scraper reads reports",
        "controller/viewers.py",
        "if user not in (viewer, capturer) and path != NODE_METRICS:",
        "if not user:",
        ("tests/controller/test_viewers.py",),
    ),
    Fault(
        "a digest that differs proves the switch",
        "controller/reconciler.py",
        "if verdict is Verdict.RIGHT:",
        "if verdict:",
        ("tests/controller/test_audit.py",),
    ),
    Fault(
        "a token for another audience is good",
        _TOKENS,
        "if not status.authenticated or audience not in status.audiences:",
        "if not status.authenticated:",
        _TOKEN_TESTS,
    ),
    Fault(
        "a token that the API server refuses is good",
        _TOKENS,
        "if not status.authenticated or audience not in status.audiences:",
        "if audience not in status.audiences:",
        _TOKEN_TESTS,
    ),
    Fault(
        "the server asks switches for no certificate",
        "controller/tls.py",
        "_listening(identity, ssl.CERT_REQUIRED)",
        "_listening(identity, ssl.CERT_OPTIONAL)",
        _TOKEN_TESTS,
    ),
    Fault(
        "the server asks agents for no certificate",
        "controller/tls.py",
        "_listening(identity, ssl.CERT_OPTIONAL)",
        "_listening(identity, ssl.CERT_NONE)",
        ("tests/controller/test_enrolment.py",),
    ),
    Fault(
        "strangers of one address are not bounded",
        _LISTENER,
        "            self._bound_address(host)\n",
        "",
        _LISTENER_TESTS,
    ),
    Fault(
        "connections of one certificate are not bounded",
        _LISTENER,
        "            self._bound_known(name)\n",
        "",
        _LISTENER_TESTS,
    ),
    Fault(
        "all connections together are not bounded",
        _LISTENER,
        "return total < self._bounds.connections and len(self._strangers)",
        "return len(self._strangers)",
        _LISTENER_TESTS,
    ),
    Fault(
        "a failed handshake stays counted",
        _LISTENER,
        "            for connections in (self._strangers, self._since):\n"
        "                connections.pop(connection, None)\n"
        "            connection.close()\n",
        "            connection.close()\n",
        _LISTENER_TESTS,
    ),
    Fault(
        "without descriptors it tries again at once",
        _LISTENER,
        '                _log.warning("%s: cannot accept connections: %s", self.address, '
        "error.strerror)\n                self._pause()\n",
        '                _log.warning("%s: cannot accept connections: %s", self.address, '
        "error.strerror)\n",
        _LISTENER_TESTS,
    ),
    Fault(
        "attachments of a refused Node are compiled",
        _PORTS,
        "        if accepted_node is None:\n",
        "        if accepted_node is None and not owner:\n",
        _INVENTORY_TESTS,
    ),
    Fault(
        "a port that no Pod has is accepted",
        _PORTS,
        "if _belongs_to_pod(name) and not owner:",
        "if False:",
        _INVENTORY_TESTS,
    ),
    Fault(
        "an address outside the podCIDR is accepted",
        _PORTS,
        "    if address not in cidr:\n",
        "    if False:\n",
        _INVENTORY_TESTS,
    ),
    Fault(
        "a pod may have the gateway's address",
        _PORTS,
        "{cidr.network_address, cidr.broadcast_address, node.gateway}",
        "{cidr.network_address, cidr.broadcast_address}",
        _INVENTORY_TESTS,
    ),
    Fault(
        "two ports with one ofport are accepted",
        _PORTS,
        'has the same ofport {port.ofport}" if others else',
        'has the same ofport {port.ofport}" if False else',
        _INVENTORY_TESTS,
    ),
    Fault(
        "the older of two sandboxes keeps the address",
        _PORTS,
        "return ring[gaps.index(max(gaps))][1]",
        "return ring[0][1]",
        _INVENTORY_TESTS,
    ),
    Fault(
        "a switch may have any number of ports",
        _PORTS,
        "if old is None and len(bridge.ports) >= MAX_PORTS:",
        "if old is None and len(bridge.ports) >= 1 << 30:",
        _INVENTORY_TESTS,
    ),
    Fault(
        "judging ports grows with the square of those that share an address",
        _PORTS,
        "        crowds = (self.claimants.get(claim, set()) for claim in self.ports[name].claims)\n"
        "        return {name for crowd in crowds if len(crowd) <= MAX_CLAIMANTS + 1 "
        "for name in crowd}",
        "        crowds = (self.claimants.get(claim, set()) for claim in self.ports[name].claims)\n"
        "        return {name for crowd in crowds for name in crowd}",
        _INVENTORY_TESTS,
    ),
    Fault(
        "config.hash counts on every Pod",
        _PODS,
        "return mirrored is not None and known is not None and mirrored[1] == known.metadata.uid",
        "return True",
        _INVENTORY_TESTS,
    ),
    Fault(
        "the younger of two Pods with one prefix gets the port",
        _PODS,
        "return min(valid, key=_age, default=None)",
        "return max(valid, key=_age, default=None)",
        _INVENTORY_TESTS,
    ),
    Fault(
        "the younger of two Nodes gets the podCIDR",
        _CLAIMS,
        "older = min((rival for rival in rivals if rival[0] < age), default=None)",
        "older = min((rival for rival in rivals if rival[0] > age), default=None)",
        _INVENTORY_TESTS,
    ),
    Fault(
        "a podCIDR that lies in another's is no conflict",
        _CLAIMS,
        "            if count and length < network.prefixlen:\n",
        "            if count and length < 0:\n",
        _INVENTORY_TESTS,
    ),
    Fault(
        "a Node that cannot be used now loses its pods",
        _NODES,
        "            if last := self._drafts.get(name):\n",
        "            if last := None:\n",
        _INVENTORY_TESTS,
    ),
)
