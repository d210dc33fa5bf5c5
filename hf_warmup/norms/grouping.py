"""Which layer a parameter belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from .._validation import check_name


GROUPINGS = ("layer", "module", "parameter")
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module"}

GroupBy = str | Callable[[str], str]


def _parts(name: str) -> list[str]:
    return [part for part in name.split(".") if part not in _WRAPPERS]


def _first_number(parts: list[str]) -> int | None:
    return next((i for i, part in enumerate(parts) if part.isdigit()), None)


def layer_names(names: Iterable[str]) -> dict[str, str]:
    """Parameter name -> layer, by transformers' own prefixes: `embeddings`, `encoder.layer.3`, `pooler`, `classifier`.

    A block is a name up to its first number. The head's prefix of the backbone (`bert.`, `model.`, `transformer.`) is
    dropped; wrappers' prefixes (DDP's `module.`, torch.compile's `_orig_mod.`) too. What is no block is named by its
    first part, or by two inside a part that also holds blocks.

    Example:

    ```python
    >>> layer_names(["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.3.output.dense.bias", "cls.bias"])
    {'bert.embeddings.word_embeddings.weight': 'embeddings', 'bert.encoder.layer.3.output.dense.bias': 'encoder.layer.3', 'cls.bias': 'cls'}

    ```
    """  # noqa: E501
    split = {name: _parts(name) for name in names}

    def firsts(with_number: bool) -> set[str]:
        return {parts[0] for parts in split.values() if (_first_number(parts) is not None) is with_number}

    # One part that holds the blocks and the embeddings is the backbone inside a head; an encoder alone is none.
    embeddings = {parts[0] for parts in split.values() if re.search("emb|wte", ".".join(parts[1:]))}
    if len(firsts(True)) == 1 and (backbone := firsts(True) & embeddings):
        split = {name: parts[1:] if parts[0] in backbone else parts for name, parts in split.items()}

    layers = {}
    for name, parts in split.items():
        number = _first_number(parts)
        if number is not None:
            layers[name] = ".".join(parts[: number + 1])
        else:
            layers[name] = ".".join(parts[: 2 if parts[0] in firsts(True) else 1])
    return layers


def group_names(names: Iterable[str], group_by: GroupBy = "layer") -> dict[str, str]:
    """Parameter name -> group, for `"layer"`, `"module"`, `"parameter"` or a function of the name."""
    names = list(names)
    if callable(group_by):
        return {name: str(group_by(name)) for name in names}
    check_name("group_by", group_by, GROUPINGS)
    if group_by == "layer":
        return layer_names(names)
    whole = {name: ".".join(_parts(name)) for name in names}
    return whole if group_by == "parameter" else {name: key.rpartition(".")[0] or key for name, key in whole.items()}
