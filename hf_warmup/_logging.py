"""Loggers whose level, handlers and format are those of `transformers.logging`."""

from __future__ import annotations

import logging
from functools import cache


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module. All loggers of this package follow `transformers.logging` from then on."""
    from transformers.utils.logging import get_logger as get_transformers_logger

    package = logging.getLogger("hf_warmup")
    package.parent = get_transformers_logger("transformers")  # type: ignore[assignment]  # gives level and handlers
    package.setLevel(package.level)  # forgets the levels that loggers below have looked up before
    return logging.getLogger(name)


@cache
def warn_once(logger: logging.Logger, text: str) -> None:
    """Log advice about arguments once per process, however often it applies."""
    logger.warning(text, stacklevel=2)
