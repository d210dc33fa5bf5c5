"""transformers' Auto classes know Pre-LN BERT wherever `hf_warmup` is imported, which stays as light as it is.

Registering needs transformers' configurations, half a second of import. Who trains has them loaded; for who has not, it
waits until the Auto classes are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


AUTO = "transformers.models.auto.configuration_auto"
# What registering needs whole. They import each other, in an order that depends on which is asked for first.
NEEDED = {AUTO, "transformers.models.auto.modeling_auto", "transformers.models.bert.configuration_bert"}


class _RegisterOnImport(MetaPathFinder):
    """Finds those modules as everyone does, and registers when the outermost of them is whole."""

    def __init__(self) -> None:
        self.names = set(NEEDED)
        self.depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.names:
            return None
        self.names.remove(fullname)  # once, and not when the others are asked
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, self)
        return spec


class _ThenRegister(Loader):
    """Another loader, and then our registration."""

    def __init__(self, loader: Loader, hook: _RegisterOnImport):
        self.loader = loader
        self.hook = hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.hook.depth += 1
        try:
            self.loader.exec_module(module)
        finally:
            self.hook.depth -= 1
        if self.hook.depth == 0 and AUTO in sys.modules:
            _register()


def _register() -> None:
    import_module(".configuration_bert_pre_ln", __package__)


def register_pre_ln_bert() -> None:
    """Now, if the Auto classes are loaded, or as soon as they are."""
    if AUTO in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _RegisterOnImport())
