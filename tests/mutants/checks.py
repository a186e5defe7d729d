"""Faults in `sluice check` and in reading support bundles."""

from typing import Final

from tests.mutants.fault import Fault

CHECKS: Final = (
    Fault(
        "a chain that kubelets make counts as kube-proxy's",
        "node_agent/checks/leftovers.py",
        '"KUBE-FORWARD", "KUBE-PROXY-CANARY"',
        '"KUBE-FORWARD", "KUBE-*"',
        ("tests/node_agent/test_findings.py",),
    ),
    Fault(
        "probes of the path may be fragmented",
        "node_agent/checks/probes.py",
        "self._socket.setsockopt(socket.IPPROTO_IP, _MTU_DISCOVER, _DISCOVER_PROBE)",
        "self._socket.setsockopt(socket.IPPROTO_IP, _MTU_DISCOVER, 0)",
        ("tests/node_agent/test_planted_faults.py",),
    ),
    Fault(
        "whatever comes to the tunnel's port is answered",
        "node_agent/checks/echo.py",
        "if data.startswith(MAGIC) and len(data) <= LONGEST:",
        "if data:",
        (
            "tests/node_agent/test_planted_faults.py::test_only_probes_are_answered_and_never_with_more_bytes",
        ),
    ),
    Fault(
        "an agent may send an answer many times at once",
        "controller/questions.py",
        "if known is None or future is None or future.done() or name in known.sending:",
        "if known is None or future is None or future.done():",
        ("tests/controller/test_questions.py",),
    ),
    Fault(
        "a silent agent keeps other reports waiting",
        "controller/viewers.py",
        "turns = of_agents if request.path in OF_AGENTS else own",
        "turns = own",
        ("tests/controller/test_viewer_turns.py",),
    ),
    Fault(
        "an agent is believed about other nodes",
        "controller/check_api.py",
        "return msgspec.structs.replace(given.found, node=name)",
        "return given.found",
        ("tests/controller/test_check_api.py",),
    ),
    Fault(
        "a bundle's members may have any name",
        "cli/bundle_file.py",
        "if name != FOLDER and not _HARMLESS.fullmatch(name):",
        "if not name:",
        ("tests/cli/test_bundle.py",),
    ),
    Fault(
        "a bundle's members may be links and devices",
        "cli/bundle_file.py",
        "if entry.type not in {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE}:",
        "if entry.type is None:",
        ("tests/cli/test_bundle.py",),
    ),
    Fault(
        "a bundle may decompress to any size",
        "cli/bundle_file.py",
        "if self._total > LARGEST_TOTAL:",
        "if self._total < 0:",
        ("tests/cli/test_bundle.py",),
    ),
    Fault(
        "a bundle's texts may control the terminal",
        "cli/bundle_file.py",
        'if hidden or (b"\\\\" in content and _ESCAPED.search(content)):',
        "if hidden is None and not content:",
        ("tests/cli/test_bundle.py",),
    ),
    Fault(
        "an unpacked bundle may hold links",
        "cli/bundle_file.py",
        "os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK",
        "os.O_RDONLY | os.O_NONBLOCK",
        ("tests/cli/test_bundle.py",),
    ),
    Fault(
        "names in a copy of a cluster are not checked",
        "controller/offline/cluster_copy.py",
        "        check_names(each)\n",
        "        str(each)\n",
        ("tests/cli/test_bundle.py",),
    ),
    Fault(
        "a bundle replaces a file that is there",
        "cli/bundle_file.py",
        "os.link(temporary, path)",
        "Path(temporary).replace(path)",
        ("tests/cli/test_bundle.py",),
    ),
)
