"""Names of a package that are loaded when they are first used, so that importing it imports neither torch nor transformers."""  # noqa: E501

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str, init_file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return the `__getattr__`, `__dir__` and `__all__` of a package.

    The names and their modules are the imports in `__init__.pyi`, where type checkers read them too. A submodule that
    is imported there is an attribute, but no name of `__all__`.

    Args:
        package (`str`): The package's `__name__`.
        init_file (`str`): The package's `__file__`, next to which `__init__.pyi` is stored.
    """
    stub = ast.parse(Path(init_file).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [(node, alias.name) for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    module_of = {name: "." * node.level + (node.module or name) for node, name in imports}
    submodules = {name for node, name in imports if node.module is None}

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(module_of[name], package)
        return module if name in submodules else getattr(module, name)

    return load, lambda: sorted(module_of), [name for name in module_of if name not in submodules]
