"""Protocol numbers that flows match (IANA registries of EtherTypes, protocols and types)."""

IPV4 = 0x0800
ARP = 0x0806
IPV6 = 0x86DD

ICMP = 1
TCP = 6
UDP = 17
ICMPV6 = 58
SCTP = 132

LAYER_4_NAMES = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
"""The protocols with ports, by the names of Open vSwitch and CNI. Kubernetes has upper case."""

ICMP_UNREACHABLE = 3

ARP_REQUEST = 1
ARP_REPLY = 2
ICMPV6_ROUTER_ADVERTISEMENT = 134
DHCP_SERVER_PORT = 67
