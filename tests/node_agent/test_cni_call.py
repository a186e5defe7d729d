"""CNI calls that are refused before anything is done, and the results by version."""

import json
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from flows import names
from node_agent.cni_call import Attached, CniCall, CniError, HostPort, Pod, conf_version, error_json

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


def with_ports(*mappings: Any) -> bytes:
    return request({**CONF, "runtimeConfig": {"portMappings": mappings}})


def test_host_ports() -> None:
    # As containerd sends it: the protocol in small letters, an empty address for any.
    call = CniCall.parse(
        with_ports(
            {"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": ""},
            # As containerd writes it.
            {"HostPort": 80, "ContainerPort": 8080, "Protocol": "TCP", "HostIP": "0.0.0.0"},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "10.0.0.1"},
            {"hostPort": 9, "containerPort": 65535, "protocol": "sctp"},
            {"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": "::"},
            {"hostPort": 7, "containerPort": 7},
        )
    )
    assert call.host_ports == (
        HostPort(6, None, 80, 8080),
        HostPort(17, IPv4Address("10.0.0.1"), 53, 53),
        HostPort(132, None, 9, 65535),
        HostPort(6, None, 7, 7),
    )
    assert tuple(HostPort.read(str(port)) for port in call.host_ports) == call.host_ports
    for empty in (None, {}, {"portMappings": None}, {"portMappings": []}):
        assert CniCall.parse(request({**CONF, "runtimeConfig": empty})).host_ports == ()
    # DEL must not fail over what it does not need.
    conf = {**CONF, "runtimeConfig": {"portMappings": 7}}
    assert CniCall.parse(request(conf, CNI_COMMAND="DEL")).host_ports == ()


@pytest.mark.parametrize(
    ("mapping", "named"),
    [
        ("80:80", r"\[0\] is not an object"),
        ({"containerPort": 80}, r"\[0\]\.hostPort: None"),
        ({"hostPort": 0, "containerPort": 80}, r"\[0\]\.hostPort: 0"),
        ({"hostPort": 65536, "containerPort": 80}, r"\[0\]\.hostPort: 65536"),
        ({"hostPort": True, "containerPort": 80}, r"\[0\]\.hostPort: True"),
        ({"hostPort": "80", "containerPort": 80}, r"\[0\]\.hostPort: '80'"),
        ({"hostPort": 80, "containerPort": -1}, r"\[0\]\.containerPort: -1"),
        ({"hostPort": 80, "containerPort": 80, "protocol": "icmp"}, r"\.protocol: 'icmp'"),
        ({"hostPort": 80, "containerPort": 80, "protocol": ["tcp"]}, r"\.protocol: \['tcp'\]"),
        ({"hostPort": 80, "containerPort": 80, "hostIP": "10.0.0"}, r"\.hostIP: '10\.0\.0'"),
        ({"hostPort": 80, "containerPort": 80, "hostIP": {"a": 1}}, r"\.hostIP: \{'a': 1\}"),
        ({"hostPort": 80, "containerPort": 80, "hostIP": 7}, r"\.hostIP: 7"),
        ({"hostPort": 80, "containerPort": 80, "hostIP": True}, r"\.hostIP: True"),
    ],
)
def test_bad_host_ports(mapping: Any, named: str) -> None:
    with pytest.raises(CniError, match=r"runtimeConfig\.portMappings" + ".*" + named) as caught:
        CniCall.parse(with_ports(mapping))
    assert caught.value.code == 7


def test_a_host_port_that_leads_to_two() -> None:
    one = {"hostPort": 80, "containerPort": 8080}
    with pytest.raises(CniError, match=r"\[1\]: 0\.0\.0\.0:80/tcp leads to container port 8080"):
        CniCall.parse(with_ports(one, {**one, "containerPort": 8081}))
    for given in ({"portMappings": {"80": 80}}, [1]):
        with pytest.raises(CniError, match=r"runtimeConfig"):
            CniCall.parse(request({**CONF, "runtimeConfig": given}))


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
