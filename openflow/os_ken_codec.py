"""os-ken's OpenFlow codec, without the rest of os-ken.

Importing `os_ken.ofproto` in the usual way imports os-ken's packet library and its configuration
too, and with them `oslo.config`, `pbr` and what these need. The codec uses none of it for what
Sluice sends and reads. So two packages are loaded without running their `__init__`, and the module
that decodes packets is an empty one. `netaddr` is all that the codec needs besides; the lock files
leave out what os-ken wants for its applications (`requirements-pruned.txt`).
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any, Final


def _package_without_init(name: str) -> ModuleType:
    found = importlib.util.find_spec(name)
    if found is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    package = importlib.util.module_from_spec(found)
    sys.modules[name] = package
    return package


def _load() -> None:
    if "os_ken" in sys.modules:
        return  # Somebody needs more of it.
    _package_without_init("os_ken")
    library: Any = importlib.import_module("os_ken.lib")
    library.packet = _package_without_init("os_ken.lib.packet")
    library.packet.packet = ModuleType("os_ken.lib.packet.packet")
    sys.modules["os_ken.lib.packet.packet"] = library.packet.packet


_load()
type_desc: Final[Any] = importlib.import_module("os_ken.lib.type_desc")
nicira_ext: Final[Any] = importlib.import_module("os_ken.ofproto.nicira_ext")
ofproto_common: Final[Any] = importlib.import_module("os_ken.ofproto.ofproto_common")
ofproto_protocol: Final[Any] = importlib.import_module("os_ken.ofproto.ofproto_protocol")
ofproto_v1_5: Final[Any] = importlib.import_module("os_ken.ofproto.ofproto_v1_5")
ofproto_v1_5_parser: Final[Any] = importlib.import_module("os_ken.ofproto.ofproto_v1_5_parser")
oxm_fields: Final[Any] = importlib.import_module("os_ken.ofproto.oxm_fields")
