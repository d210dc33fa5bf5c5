"""Read run folders: findings in sentences, figures, one self-contained HTML page and a model card.

`python -m hf_warmup.report RUN [RUN ...]` does all of it. Names are loaded when they are first used, so that reading a
log imports neither torch nor transformers nor a library that draws.
"""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
