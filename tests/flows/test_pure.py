"""The core imports only the standard library, and no module that does I/O or reads a clock."""

import ast
import sys
from pathlib import Path

import flows

IMPURE = {"asyncio", "datetime", "io", "os", "pathlib", "random", "socket", "subprocess", "time"}


def test_flows_imports_only_pure_modules() -> None:
    for path in Path(flows.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                top = module.partition(".")[0]
                assert top == "flows" or top in sys.stdlib_module_names - IMPURE, (path, module)
