"""Everything about a machine that a playbook could change, to be compared with `==`."""

import hashlib
import re
import stat
from pathlib import Path
from typing import Any

from tests.ansible.machine import Machine

# What a machine writes by itself, or any installation of any package: caches, logs, dpkg's own; and
# the database of Open vSwitch, which only grows: what it says is compared.
OWN = [
    "var/log", "var/cache", "var/backups", "var/lib/apt", "var/lib/dpkg", "var/lib/systemd",
    "var/lib/ucf", "etc/ld.so.cache", "root/.ansible", "tmp", "run", "var/lib/openvswitch/conf.db",
]  # fmt: skip


# What Debian leaves behind when it purges a package with a system user, here uuid-runtime's.
LEFT_BY_DEBIAN = re.compile(r"files: (etc/(passwd|shadow|group|gshadow)-?|var/lib/libuuid\b.*): ")


def snapshot(machine: Machine) -> dict[str, Any]:
    """Files, packages, units, the network, and what Open vSwitch is configured to."""
    return {
        "files": files(machine.root),
        "packages": sorted(machine.run(["dpkg-query", "--show"]).splitlines()),
        "units": {
            unit["unit_file"]: unit["state"]
            for unit in machine.json(["systemctl", "list-unit-files", "--output=json"])
        },
        "running": sorted(
            unit["unit"]
            for unit in machine.json(
                ["systemctl", "list-units", "--type=service", "--state=running", "--output=json"]
            )
            # One for each connection by SSH; and one that Debian's socket starts, and that ends.
            if not unit["unit"].startswith(("user", "session", "uuidd"))
        ),
        "links": {
            link["ifname"]: (link["mtu"], link["address"], link["operstate"])
            for link in machine.json(["ip", "-json", "link"])
        },
        "addresses": machine.run(["ip", "-brief", "-4", "address"]).split(),
        "routes": machine.run(["ip", "-4", "route", "show", "table", "all"]).splitlines(),
        "nftables": machine.run(["nft", "list", "ruleset"]),
        "sysctls": dict(
            line.split(" = ", 1)
            for line in machine.run(
                ["sysctl", "--all", "--pattern", r"^net\.ipv4\.(ip_forward|conf)"]
            ).splitlines()
        ),
        "ovsdb": ovsdb(machine) if (machine.root / "usr/bin/ovs-vsctl").exists() else None,
    }


def files(root: Path) -> dict[str, tuple[str, int, str]]:
    found = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if f"{name}/".startswith(tuple(f"{own}/" for own in OWN)) or "__pycache__" in name:
            continue
        status = path.lstat()
        content = ""
        if path.is_symlink():
            content = str(path.readlink())
        elif stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[name] = (stat.filemode(status.st_mode), status.st_uid, content)
    return found


def ovsdb(machine: Machine) -> dict[str, str]:
    """What is configured; of what Open vSwitch itself reports nothing."""
    columns = {
        "Open_vSwitch": "bridges,external_ids,other_config,manager_options,ssl",
        "Bridge": "name,ports,controller,datapath_type,fail_mode,other_config,external_ids",
        "Port": "name,interfaces,external_ids",
        "Interface": "name,type,options,ofport_request,external_ids",
        "Controller": "target",
        "SSL": "ca_cert",
        "Flow_Table": "name",
    }
    list_of = ["ovs-vsctl", "--format=csv"]
    return {
        table: machine.run([*list_of, f"--columns={names}", "list", table])
        for table, names in columns.items()
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not as before, one line each, but for what Debian itself leaves."""
    lines = []
    for what, was in before.items():
        now = after[what]
        if isinstance(was, dict) and isinstance(now, dict):
            lines += [
                f"{what}: {key}: {was.get(key)} -> {now.get(key)}"
                for key in sorted(was.keys() | now.keys())
                if was.get(key) != now.get(key)
            ]
        elif was != now:
            lines.append(f"{what}: {was} -> {now}")
    return [line for line in lines if not LEFT_BY_DEBIAN.match(line)]
