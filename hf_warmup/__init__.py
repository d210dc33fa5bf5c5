"""Learning-rate warmup for the Hugging Face Trainer and for Accelerate loops.

Schedules shape the learning rate, optimizers step the weights, recorders measure the gradients of each layer, and a
report shows whether the run needed its warmup. `dir(hf_warmup)` lists the public names; `help(hf_warmup.RAdam)`
describes one. Every name is loaded when it is first used, so that importing the package imports neither torch nor
transformers.
"""

import sys
from typing import Any

from ._lazy import lazy_names


__version__ = "0.1.0"

_load, __dir__, _public_names = lazy_names(__name__, __file__)


def __getattr__(name: str) -> Any:
    # `help(hf_warmup)` would print every class of `__all__` with all that it inherits, 12,000 lines.
    if name == "__all__" and sys._getframe(1).f_globals.get("__name__") != "pydoc":
        return _public_names
    return _load(name)
