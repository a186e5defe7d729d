"""Run a program of an older Sluice: run.py TREE PROGRAM --config FILE [ARGUMENTS]

TREE is where the older version's folders are. It finds the packages that are installed now: what it
imports besides is made here. Keys of the configuration file that it does not know are left out, as
an administrator who has not upgraded yet would not have them.
"""

import runpy
import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import yaml

tree, program, _, file, *arguments = sys.argv[1:]
sys.path.insert(0, tree)


def load_codec() -> None:
    """os-ken without its other parts, as openflow/os_ken_codec.py does now."""
    code = (Path(__file__).parents[3] / "openflow" / "os_ken_codec.py").read_text()
    exec(compile(code, "os_ken_codec", "exec"), {"__name__": "os_ken_codec"})  # noqa: S102


def load_ovsdbapp() -> None:
    """The one function of `ovsdbapp` that it calls: the schema of a database."""

    def get_schema_helper(remote: str, name: str) -> Any:
        from ovs import jsonrpc, stream  # noqa: PLC0415
        from ovs.db import idl  # noqa: PLC0415

        error, connected = stream.Stream.open_block(stream.Stream.open(remote))
        if error:
            raise OSError(f"cannot connect to {remote}")
        connection = jsonrpc.Connection(connected)
        request = jsonrpc.Message.create_request("get_schema", [name])
        error, reply = connection.transact_block(request)
        connection.close()
        if error or reply.error:
            raise OSError(f"cannot read the schema of {remote}")
        return idl.SchemaHelper(None, reply.result)

    names = ["ovsdbapp", "ovsdbapp.backend", "ovsdbapp.backend.ovs_idl"]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    idlutils = types.ModuleType("ovsdbapp.backend.ovs_idl.idlutils")
    idlutils.get_schema_helper = get_schema_helper  # type: ignore[attr-defined]
    sys.modules[names[-1]].idlutils = idlutils  # type: ignore[attr-defined]
    sys.modules[idlutils.__name__] = idlutils


def known(content: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the keys of the older schema."""
    import settings  # noqa: PLC0415  it is the older one only now

    sections = {
        "cluster": settings.Cluster,
        "controller": settings.Controller,
        "agent": settings.Agent,
    }
    return {
        name: {key: value for key, value in section.items() if key in encoded(sections[name])}
        if name in sections
        else section
        for name, section in content.items()
    }


def encoded(section: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(section)}


if __name__ == "__main__":
    load_codec()
    load_ovsdbapp()
    older = Path(file).with_suffix(".older.yaml")
    older.write_text(yaml.safe_dump(known(yaml.safe_load(Path(file).read_text()))))
    sys.argv = [program, "--config", str(older), *arguments]
    runpy.run_module(program, run_name="__main__")
