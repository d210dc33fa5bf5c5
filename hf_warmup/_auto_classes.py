"""transformers' Auto classes know Pre-LN BERT wherever `hf_warmup` is imported, which stays as light as it is.

Registering needs transformers' configurations, half a second of import. Who trains has them loaded; for who has not, it
waits until they are.
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


class _ThenRegister(Loader):
    """Another loader, and then our registration."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _register()


class _RegisterOnImport(MetaPathFinder):
    """Finds the one module as the others do, for once, and registers behind it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


def _register() -> None:
    import_module(".configuration_bert_pre_ln", __package__)


def register_pre_ln_bert() -> None:
    """Now, if the Auto classes are loaded, or as soon as they are."""
    if AUTO in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _RegisterOnImport())
