"""The configuration of an ExaBGP process, which has one peer."""

from base64 import b64encode
from collections.abc import Sequence
from ipaddress import IPv4Address

from wire.bgp import Peer


def configuration(peer: Peer, router_id: IPv4Address, helper: Sequence[str]) -> str:
    """As text. `helper` is the command of the program that ExaBGP's API is connected to.

    The End-of-RIB marker is ours to send (`manual-eor`): it makes the peer drop routes of an
    earlier session, so it has to come after all routes, which come over the API.

    What a peer announces is read, counted and forgotten (`adj-rib-in false`).
    """
    multihop = f"outgoing-ttl {peer.multihop};" if peer.multihop else ""
    # In base64, which has no character that means something in this language.
    key = b64encode(peer.password.encode()).decode()
    password = f"md5-password {key}; md5-base64 true;" if key else ""
    restart = f"graceful-restart {peer.graceful_restart};" if peer.graceful_restart else ""
    return f"""\
process sluice {{ run {" ".join(helper)}; encoder json; }}
neighbor {peer.address} {{
  router-id {router_id};
  local-address auto;
  local-as {peer.local_asn};
  peer-as {peer.asn};
  connect {peer.port};
  hold-time {peer.hold_time};
  {multihop}
  {password}
  adj-rib-in false;
  adj-rib-out true;
  manual-eor true;
  family {{ ipv4 unicast; }}
  capability {{ asn4 enable; route-refresh enable; add-path send; {restart} }}
  api {{
    processes [ sluice ];
    neighbor-changes;
    negotiated;
    fsm;
    receive {{ packets; update; }}
  }}
}}
"""
