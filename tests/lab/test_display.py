"""What `sluice lab status` prints: identifiers are whole, however narrow the terminal is."""

import io

from rich.console import Console

from lab.display import show_status

NAME = "default/" + "a-name-of-a-pod-that-is-long-" * 4
NAMESPACE = "sluice.lab.pod." + "0123456789abcdef" * 4


def test_no_identifier_is_cut_at_80_columns() -> None:
    out = io.StringIO()
    place = {"namespace": "sluice.lab.outside", "address": "203.0.113.10"}
    pod = {
        "node": "node1", "address": "10.244.1.2", "mac": "0a:58:0a:f4:01:02",
        "port": "pabcdefghij1234", "namespace": NAMESPACE,
    }  # fmt: skip
    show_status(
        Console(file=out, width=80),
        {
            "name": "lab", "tunnel": "geneve", "source": "dir", "ready": True, "nodes": {},
            "controllers": {"control2": place | {"pid": 7, "leads": True}},
            "controller": {"address": "172.30.0.2", "namespace": "sluice.lab.control"},
            "control": {"pids": {}}, "fabric": place, "outside": place, "problems": {},
            "pods": {NAME: pod}, "directory": "/run/sluice-lab/lab",
        },
    )  # fmt: skip
    (line,) = (line for line in out.getvalue().splitlines() if "node1" in line)
    assert line.split() == [NAME, *pod.values()]
    assert "control2  controller (leads)  7    203.0.113.10  sluice.lab.outside" in out.getvalue()
