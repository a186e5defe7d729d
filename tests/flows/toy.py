"""The feature that docs/add-a-feature.md adds, made of the code on that page."""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import flows.view
from flows.compile import FEATURES, Compiler
from flows.family import IPAddress
from flows.view import SOME_SCOPE, ClusterView, Key

PAGE = Path(__file__).parents[2] / "docs" / "add-a-feature.md"


@dataclass(frozen=True, slots=True)
class BlockedAddress:
    """An address that pods of some nodes must not reach."""

    name: str
    address: IPAddress


@dataclass(frozen=True, slots=True)
class ToyView(ClusterView):
    """A view with the field that the page adds."""

    blocked: Mapping[str, BlockedAddress] = field(default_factory=dict)


def key(name: str) -> Key:
    return Key(SOME_SCOPE, "blocked", name)


def blocks() -> dict[str, str]:
    """The code on the page, by the file that it belongs to."""
    found = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return dict(found)


def _writes() -> Iterable[Any]:
    module = ModuleType("blocked")
    visible: Any = ModuleType("flows.view")
    visible.__dict__.update(vars(flows.view), BlockedAddress=BlockedAddress)
    real, sys.modules["flows.view"] = sys.modules["flows.view"], visible
    try:
        code = compile(blocks()["flows/features/blocked.py"], PAGE, "exec")
        exec(code, module.__dict__)  # noqa: S102 - the page's own code
    finally:
        sys.modules["flows.view"] = real
    found: Iterable[Any] = module.WRITES
    return found


TOY = Compiler((*FEATURES, _writes()))
