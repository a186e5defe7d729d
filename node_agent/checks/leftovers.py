"""What kube-proxy and other networks leave on a host, and how to recognise it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from node_agent.checks.facts import Chain, Facts
from node_agent.install import CONF_NAME
from wire.findings import Finding, Severity

NAMED_AT_MOST: Final = 3
"""Objects of one kind that a finding names."""


@dataclass(frozen=True, slots=True)
class Network:
    """Another network, by the names that it gives to things. A name that ends in * is a prefix."""

    name: str
    chains: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    removal: str = ""


KUBE_PROXY: Final = Network(
    "kube-proxy",
    # Not KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, KUBE-FIREWALL, KUBE-MARK-* and KUBE-POSTROUTING:
    # kubelets make these too (KEP-3178).
    chains=(
        *("KUBE-SERVICES", "KUBE-SVC-*", "KUBE-SVL-*", "KUBE-SEP-*", "KUBE-XLB-*", "KUBE-EXT-*"),
        *("KUBE-FW-*", "KUBE-NODEPORTS", "KUBE-NODE-PORT", "KUBE-EXTERNAL-SERVICES"),
        *("KUBE-FORWARD", "KUBE-PROXY-CANARY", "KUBE-PROXY-FIREWALL", "KUBE-LOAD-BALANCER"),
    ),
    tables=("kube-proxy",),
    links=("kube-ipvs0",),
    removal="delete its DaemonSet and run `kube-proxy --cleanup` on this node, or reboot it",
)
NETWORKS: Final = (
    Network(
        "Flannel", ("FLANNEL-*",), ("flannel-*",), ("flannel.*", "flannel-*"), ("flannel",)
    ),
    Network(
        "Calico", ("cali-*",), ("calico",), ("cali*", "vxlan.calico"), ("calico", "calico-ipam")
    ),
    Network(
        "Cilium", ("CILIUM_*", "OLD_CILIUM_*"), (), ("cilium_*", "lxc_health"), ("cilium-cni",)
    ),
    Network("Weave Net", ("WEAVE", "WEAVE-*"), (), ("weave", "vethwe-*"), ("weave-net",)),
    Network("Antrea", ("ANTREA-*",), ("antrea*",), ("antrea-gw0", "antrea-tun*"), ("antrea",)),
    Network(
        "OVN-Kubernetes",
        ("OVN-KUBE-*",),
        ("ovn-kubernetes",),
        ("ovn-k8s-mp*",),
        ("ovn-k8s-cni-overlay",),
    ),
    Network("Kube-OVN", ("OVN-PREROUTING", "OVN-POSTROUTING"), (), ("ovn0",), ("kube-ovn",)),
    Network("kube-router", ("KUBE-ROUTER-*", "KUBE-POD-FW-*", "KUBE-NWPLCY-*"), (),
            ("kube-bridge", "kube-dummy-if"), ()),
    Network("kindnet", (), ("kindnet-*", "kube-network-policies"), (), ("kindnet",)),
    # Of the plugin `bridge` under the name that Flannel and K3s give to it.
    Network("the CNI plugin bridge", (), (), ("cni0",), ()),
)  # fmt: skip


def leftovers(facts: Facts) -> Iterator[Finding]:
    """Findings about kube-proxy, other networks, and their CNI files."""
    yield from _of_kube_proxy(facts)
    for network in NETWORKS:
        found = [
            *(f"interface {link.name}" for link in facts.links if _any(link.name, network.links)),
            *(chain.title for chain in facts.chains if _any(chain.name, network.chains)),
            *(
                f"table {family} {name}"
                for family, name in facts.tables
                if _any(name, network.tables)
            ),
        ]
        if found:
            yield Finding(
                Severity.WARNING,
                found[0],
                f"{network.name} has left {_some(found)}, which may take or drop packets of pods",
                f"remove {network.name} by its own instructions, then reboot the node",
            )
    yield from _cni_files(facts)


def _of_kube_proxy(facts: Facts) -> Iterator[Finding]:
    chains = [chain for chain in facts.chains if _any(chain.name, KUBE_PROXY.chains)]
    programs: dict[str, list[Chain]] = {}
    for chain in chains:
        programs.setdefault(chain.program, []).append(chain)
    for program, some in sorted(programs.items()):
        titles = [chain.title for chain in some]
        yield Finding(
            Severity.ERROR,
            titles[0],
            f"kube-proxy's rules take connections to Services ({program} shows {_some(titles)})",
            KUBE_PROXY.removal,
        )
    for family, name in facts.tables:
        if _any(name, KUBE_PROXY.tables):
            yield Finding(
                Severity.ERROR,
                f"table {family} {name}",
                "kube-proxy's rules take connections to Services",
                f"{KUBE_PROXY.removal}; or `nft delete table {family} {name}`",
            )
    for link in facts.links:
        if _any(link.name, KUBE_PROXY.links):
            yield Finding(
                Severity.ERROR,
                f"interface {link.name}",
                "kube-proxy in mode ipvs has bound the addresses of Services to it",
                f"{KUBE_PROXY.removal}; or `ipvsadm --clear` and `ip link delete {link.name}`",
            )


def _cni_files(facts: Facts) -> Iterator[Finding]:
    for file in facts.cni_files:
        name = PurePath(file.path).name
        if name == CONF_NAME:
            continue
        owner = next(
            (n.name for n in NETWORKS if any(_any(each, n.plugins) for each in file.plugins)), ""
        )
        if name < CONF_NAME:
            yield Finding(
                Severity.ERROR,
                file.path,
                f"the container runtime uses it, and not Sluice: it is before {CONF_NAME} in the"
                " order of names",
                f"remove {owner or 'the network that it belongs to'}, then delete the file",
            )
        elif owner:
            yield Finding(
                Severity.WARNING,
                file.path,
                f"pods get the network of {owner} whenever {CONF_NAME} is not there",
                f"remove {owner}, then delete the file",
            )


def _any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(
        name.startswith(each[:-1]) if each.endswith("*") else name == each for each in patterns
    )


def _some(names: list[str]) -> str:
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
