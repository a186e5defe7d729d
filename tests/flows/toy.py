"""The feature that docs/add-a-feature.md adds, from the code on that page."""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import flows.kinds
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
    """The code on the page, by its file."""
    found = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return dict(found)


def _extended(module: ModuleType, **more: object) -> ModuleType:
    """A copy of a module with more names in it."""
    made = ModuleType(module.__name__)
    made.__dict__.update(vars(module), **more)
    return made


def _run(file: str, module: ModuleType) -> None:
    code = compile(blocks()[file], PAGE, "exec")
    exec(code, module.__dict__)  # noqa: S102 - the page's own code


def _writes() -> Iterable[Any]:
    view = _extended(flows.view, BlockedAddress=BlockedAddress)
    kinds, feature = _extended(flows.kinds), ModuleType("blocked")
    with patch.dict(sys.modules, {"flows.view": view, "flows.kinds": kinds}):
        _run("flows/kinds.py", kinds)
        _run("flows/features/blocked.py", feature)
    found: Iterable[Any] = feature.WRITES
    return found


TOY = Compiler((*FEATURES, _writes()))
