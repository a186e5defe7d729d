"""Fields of Services and EndpointSlices: protocols, ports, addresses, and what is wrong there."""

from ipaddress import IPv4Address
from ipaddress import ip_address as parse_address
from typing import Final

from flows.features.protocols import LAYER_4_NAMES
from settings.plain_yaml import shown

PROTOCOL_NAMES: Final = {number: name.upper() for number, name in LAYER_4_NAMES.items()}
PROTOCOLS: Final = {name: number for number, name in PROTOCOL_NAMES.items()}
"""IANA's numbers, by the names of core/v1 Protocol."""
PORTS: Final = range(1, 65_536)
_BROADCAST: Final = IPv4Address("255.255.255.255")


class FieldProblems(list[str]):
    """What is wrong with the fields of one object, collected while it is read."""

    def address(self, field: str, text: str, *, quiet_ipv6: bool) -> IPv4Address | None:
        """Read an IPv4 address. With `quiet_ipv6` an IPv6 address is no problem, and left out."""
        try:
            found = parse_address(text)
        except ValueError:
            self.append(f"{field}: {shown(text)} is not an IP address")
            return None
        if isinstance(found, IPv4Address):
            if (why := _unreachable(found)) != "":
                self.append(f"{field}: {found} is {why}")
                return None
            return found
        if not quiet_ipv6:
            self.append(f"{field}: {found} is not IPv4")
        return None

    def choice(self, field: str, text: str, choices: tuple[str, str]) -> bool:
        """Whether the text is the second of two choices; anything else counts as the first."""
        if text not in {"", *choices}:
            self.append(f"{field}: {shown(text)} is neither {choices[0]} nor {choices[1]}")
        return text == choices[1]


def _unreachable(address: IPv4Address) -> str:
    """Why no connection may be sent there (see CVE-2021-25737); empty: it may."""
    if address.is_loopback:
        return "a loopback address"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if address.is_unspecified:
        return "the unspecified address"
    return "the broadcast address" if address == _BROADCAST else ""
