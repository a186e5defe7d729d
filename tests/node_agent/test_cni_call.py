"""CNI calls that are refused before anything is done, and the results by version."""

import json
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from flows import names
from node_agent.cni_call import Attached, CniCall, CniError, Pod, conf_version, error_json

POD = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=0b-1"
GOOD = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "abc",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/run/netns/x",
    "CNI_ARGS": f"IgnoreUnknown=1;{POD}",
}
CONF = {"cniVersion": "1.1.0", "name": "sluice", "type": "sluice"}


def request(conf: Any = CONF, **env: str | None) -> bytes:
    given = {**GOOD, **env}
    text = "".join(f"{key}={value}\0" for key, value in given.items() if value is not None)
    stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    return text.encode() + b"\0" + stdin


def test_good_call() -> None:
    call = CniCall.parse(request())
    assert (call.command, call.version, call.container_id) == ("ADD", "1.1.0", "abc")
    assert (call.ifname, call.netns) == ("eth0", Path("/run/netns/x"))
    assert call.pod == Pod("default", "web-0", "0b-1")
    assert call.port == names.port_name("default", "web-0", "0b-1", "eth0", "abc")


@pytest.mark.parametrize("args", [None, "", "IgnoreUnknown=1", "IgnoreUnknown=1;K8S_POD_NAME=web"])
def test_container_without_kubernetes(args: str | None) -> None:
    call = CniCall.parse(request(CNI_ARGS=args))
    assert call.pod is None
    assert call.port == names.container_port_name("abc", "eth0")
    other = CniCall.parse(request(CNI_ARGS=args, CNI_IFNAME="net1"))
    assert other.port == names.container_port_name("abc", "net1")


@pytest.mark.parametrize(
    ("env", "code", "named"),
    [
        ({"CNI_COMMAND": None}, 4, "CNI_COMMAND"),
        ({"CNI_COMMAND": "STEAL"}, 4, "CNI_COMMAND"),
        ({"CNI_CONTAINERID": None}, 4, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": ""}, 4, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "../x"}, 4, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "a b"}, 4, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "a\nb"}, 4, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "a\n"}, 4, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "a" * 300}, 4, "CNI_CONTAINERID"),
        ({"CNI_IFNAME": None}, 4, "CNI_IFNAME"),
        ({"CNI_IFNAME": "e" * 16}, 4, "CNI_IFNAME"),
        ({"CNI_IFNAME": "eth/0"}, 4, "CNI_IFNAME"),
        ({"CNI_IFNAME": ".."}, 4, "CNI_IFNAME"),
        ({"CNI_IFNAME": "é"}, 4, "CNI_IFNAME"),
        ({"CNI_IFNAME": "net1"}, 4, "CNI_IFNAME: net1"),
        ({"CNI_IFNAME": "net1", "CNI_COMMAND": "CHECK"}, 4, "CNI_IFNAME: net1"),
        ({"CNI_NETNS": None}, 4, "CNI_NETNS"),
        ({"CNI_NETNS": "relative"}, 4, "CNI_NETNS"),
        ({"CNI_ARGS": "K8S_POD_NAME"}, 4, "CNI_ARGS"),
        ({"CNI_ARGS": "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b"}, 4, "K8S_POD_UID"),
        ({"CNI_ARGS": POD.replace("default", "De/fault")}, 4, "K8S_POD_NAMESPACE"),
        ({"CNI_ARGS": POD.replace("web-0", "-web")}, 4, "K8S_POD_NAME"),
        ({"CNI_ARGS": POD.replace("0b-1", "0b/1")}, 4, "K8S_POD_UID"),
    ],
)
def test_bad_environment(env: dict[str, str | None], code: int, named: str) -> None:
    with pytest.raises(CniError, match=named) as caught:
        CniCall.parse(request(**env))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("conf", "code", "named"),
    [
        (b"{not json", 6, "stdin"),
        (b"", 6, "stdin"),
        (b"\xff\xfe", 6, "stdin"),
        (b"[]", 6, "stdin"),
        (b'{"x":' + b"[" * 100_000, 6, "stdin"),
        ({"cniVersion": "1.1.0"}, 7, "name"),
        ({"cniVersion": "1.1.0", "name": 7}, 7, "name"),
        ({"name": "x"}, 1, "cniVersion: None"),
        ({"cniVersion": "0.2.0", "name": "x"}, 1, "cniVersion: '0.2.0'"),
        ({"cniVersion": "2.0.0", "name": "x"}, 1, "cniVersion: '2.0.0'"),
        ({"cniVersion": [1], "name": "x"}, 1, "cniVersion"),
    ],
)
def test_bad_conf(conf: Any, code: int, named: str) -> None:
    with pytest.raises(CniError, match=named) as caught:
        CniCall.parse(request(conf))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("command", "version", "good"),
    [
        ("CHECK", "0.3.1", False),
        ("CHECK", "0.4.0", True),
        ("GC", "1.0.0", False),
        ("STATUS", "1.0.0", False),
        ("STATUS", "1.1.0", True),
        ("DEL", "0.3.1", True),
    ],
)
def test_commands_by_version(command: str, version: str, good: bool) -> None:
    text = request({**CONF, "cniVersion": version}, CNI_COMMAND=command)
    if good:
        assert CniCall.parse(text).version == version
    else:
        with pytest.raises(CniError, match=f"{command} needs") as caught:
            CniCall.parse(text)
        assert caught.value.code == 1


def test_del_needs_neither_netns_nor_args() -> None:
    call = CniCall.parse(request(CNI_COMMAND="DEL", CNI_NETNS="", CNI_ARGS="%%"))
    assert (call.netns, call.pod) == (None, None)


def test_status_needs_nothing() -> None:
    text = request(CNI_COMMAND="STATUS", CNI_CONTAINERID=None, CNI_IFNAME=None, CNI_NETNS=None)
    assert CniCall.parse(text).command == "STATUS"


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_result(version: str) -> None:
    call = CniCall.parse(request({**CONF, "cniVersion": version}))
    result = json.loads(call.result(Attached(call.port, IPv4Address("10.1.2.3"), 1450)))
    old = version in ("0.3.1", "0.4.0")
    mtu = {"mtu": 1450} if version == "1.1.0" else {}
    assert result == {
        "cniVersion": version,
        "interfaces": [
            {"name": call.port, "mac": "0a:58:0a:01:02:03", **mtu},
            {"name": "eth0", "mac": "0a:58:0a:01:02:03", "sandbox": "/run/netns/x", **mtu},
        ],
        "ips": [
            {
                "address": "10.1.2.3/32",
                "gateway": "169.254.1.1",
                "interface": 1,
                **({"version": "4"} if old else {}),
            }
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
        "dns": {},
    }


@pytest.mark.parametrize(
    "valid",
    [
        None, {}, "", False, 0, 7, ["a"], [{}], [{"containerID": "a"}],
        {"containerID": "a", "ifname": "eth0"},
        [{"containerID": "a", "ifname": 7}], [{"containerID": ["a"], "ifname": "eth0"}],
        [{"containerID": "a", "ifname": "eth0"}, None],
    ],
)  # fmt: skip
def test_gc_without_a_list_releases_nothing(valid: Any) -> None:
    call = CniCall.parse(request({**CONF, "cni.dev/valid-attachments": valid}, CNI_COMMAND="GC"))
    with pytest.raises(CniError, match=r"cni\.dev/valid-attachments") as caught:
        call.valid_attachments()
    assert caught.value.code == 7


def test_gc_list() -> None:
    valid = [{"containerID": "a", "ifname": "eth0"}]
    call = CniCall.parse(request({**CONF, "cni.dev/valid-attachments": valid}, CNI_COMMAND="GC"))
    assert call.valid_attachments() == {("a", "eth0")}
    none = CniCall.parse(request({**CONF, "cni.dev/valid-attachments": []}, CNI_COMMAND="GC"))
    assert none.valid_attachments() == set()


def test_error_answers_in_the_version_asked_for() -> None:
    text = request({"cniVersion": "0.4.0"})
    with pytest.raises(CniError) as caught:
        CniCall.parse(text)
    error = json.loads(error_json(caught.value, conf_version(text)))
    assert error == {
        "cniVersion": "0.4.0",
        "code": 7,
        "msg": "stdin: name: the network configuration has no name",
    }
    assert conf_version(b"A=1\0\0{nonsense") == "1.1.0"
    assert conf_version(b"A=1\0\0" + b"[" * 100_000) == "1.1.0"
