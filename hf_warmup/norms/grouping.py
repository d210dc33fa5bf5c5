"""The layer that a parameter belongs to, and the stacks that equal layers form."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from .._validation import check_name


GROUPINGS = ("layer", "module", "parameter", "attention", "mlp")

# Attributes in which wrappers keep a model: DDP, torch.compile, FSDP, activation checkpointing, Fabric.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
_PEFT_PREFIX = ["base_model", "model"]
# Names of sub-modules of a block in transformers' models. `output` is the second feed-forward matrix of BERT's block.
_KINDS = {
    "attention": re.compile("att(entio)?n", re.IGNORECASE),
    "mlp": re.compile("mlp|ffn?$|feed_?forward|intermediate|^output$|moe|expert|^fc_?[0-9]$|denserelu", re.IGNORECASE),
}
_NORM = re.compile("norm|^ln", re.IGNORECASE)

GroupBy = str | Callable[[str], str]


def _parts(name: str) -> list[str]:
    """Split a parameter name into its parts, without those that wrappers and PEFT add before the model's own."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return parts[2:] if parts[:2] == _PEFT_PREFIX else parts


def _first_number(parts: list[str]) -> int | None:
    return next((i for i, part in enumerate(parts) if part.isdigit()), None)


def _outer_module(names: Iterable[list[str]]) -> str | None:
    """Return the first part of `names` that only wraps layers which have names of their own, if there is one.

    It is the part that all names share, or the one part that contains both numbered blocks and embeddings: the
    backbone of a head model. An encoder or a decoder is a part of a model, not a wrapper.
    """
    insides: dict[str, list[list[str]]] = {}
    for first, *inside in names:
        insides.setdefault(first, []).append(inside)

    def wraps(first: str, inside: list[list[str]]) -> bool:
        if first in ("encoder", "decoder") or any(parts and parts[0].isdigit() for parts in inside):
            return False
        if len(insides) == 1:
            return all(len(parts) > 1 for parts in inside)
        with_embeddings = any(re.search("emb|wte", ".".join(parts)) for parts in inside)
        return with_embeddings and any(_first_number(parts) is not None for parts in inside)

    wrapping = [first for first, inside in insides.items() if wraps(first, inside)]
    return wrapping[0] if len(wrapping) == 1 else None


def layer_names(names: Iterable[str]) -> dict[str, str]:
    """Return the layer of each parameter, named by transformers' prefixes: `embeddings`, `encoder.layer.3`, `pooler`.

    A numbered block is named by its parameters' common prefix, up to the first number. Every other parameter is named
    by the first part of its name, or by the first two inside a part that also contains blocks. The prefixes of wrappers
    (DDP, FSDP, torch.compile, Fabric), of PEFT, of a LightningModule's attribute and of the backbone in a head model
    (`bert.`, `model.`) are dropped, so that the layers of a model are called the same however it is trained.

    Args:
        names (`Iterable[str]`): The names of all parameters of one model.

    Returns:
        `dict[str, str]`: Parameter name -> layer, in the order of `names`.

    Example:

    ```python
    >>> layer_names(["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.3.output.dense.bias", "cls.bias"])
    {'bert.embeddings.word_embeddings.weight': 'embeddings', 'bert.encoder.layer.3.output.dense.bias': 'encoder.layer.3', 'cls.bias': 'cls'}

    ```
    """  # noqa: E501
    split = {name: _parts(name) for name in names}
    while outer := _outer_module(split.values()):
        split = {name: parts[1:] if parts[0] == outer else parts for name, parts in split.items()}
    with_blocks = {parts[0] for parts in split.values() if _first_number(parts) is not None}

    def layer(parts: list[str]) -> str:
        number = _first_number(parts)
        if number is not None:
            return ".".join(parts[: number + 1])
        return ".".join(parts[: 2 if parts[0] in with_blocks else 1])

    return {name: layer(parts) for name, parts in split.items()}


def group_names(names: Iterable[str], group_by: GroupBy = "layer") -> dict[str, str]:
    """Return the group of each parameter.

    Args:
        names (`Iterable[str]`): The names of all parameters of one model.
        group_by (`str` or `Callable[[str], str]`, defaults to `"layer"`): `"layer"`, see [`layer_names`]; `"module"`,
            the module that owns the parameter; `"parameter"`, each parameter alone; `"attention"` or `"mlp"`, the
            layers with their attention or feed-forward modules as groups of their own, such as
            `encoder.layer.3.attention`; or a function from a parameter's name to its group's.

    Raises:
        `ValueError`: If `group_by` is another word.

    Example:

    ```python
    >>> group_names(["h.0.attn.c_proj.weight", "h.0.mlp.c_fc.weight"], "attention")
    {'h.0.attn.c_proj.weight': 'h.0.attention', 'h.0.mlp.c_fc.weight': 'h.0'}

    ```
    """
    names = list(names)
    if callable(group_by):
        return {name: str(group_by(name)) for name in names}
    check_name("group_by", group_by, GROUPINGS)
    if group_by == "parameter":
        return {name: ".".join(_parts(name)) for name in names}
    if group_by == "module":
        return {name: ".".join(_parts(name)[:-1]) or name for name in names}
    layers = layer_names(names)
    if group_by in ("attention", "mlp"):
        return {name: f"{layer}.{group_by}" if _kind(name) == group_by else layer for name, layer in layers.items()}
    return layers


def _kind(name: str) -> str | None:
    """Return which kind of sub-module of a numbered block a parameter is in, `"attention"`, `"mlp"` or `None`."""
    parts = _parts(name)
    number = _first_number(parts)
    if number is None:
        return None
    for part in parts[number + 1 : -1]:
        if _NORM.search(part):
            return None
        for kind, pattern in _KINDS.items():
            if pattern.search(part):
                return kind
    return None


def find_stacks(layers: Iterable[str], growing: Collection[str] = ()) -> dict[str, list[str]]:
    """Return the stacks of equal blocks in a model: `encoder.layer` -> `[encoder.layer.0, encoder.layer.1, ...]`.

    An encoder-decoder model has two stacks, each tower of a multi-modal model one.

    Args:
        layers (`Iterable[str]`): Layers as named by [`layer_names`].
        growing (`Collection[str]`, *optional*): Prefixes of blocks that are not equal, see [`growing_stacks`].

    Returns:
        `dict[str, list[str]]`: Common prefix -> its blocks in the order of their numbers, at least two.

    Example:

    ```python
    >>> find_stacks(["shared", "encoder.block.0", "encoder.block.1", "decoder.block.1", "decoder.block.0", "lm_head"])
    {'encoder.block': ['encoder.block.0', 'encoder.block.1'], 'decoder.block': ['decoder.block.0', 'decoder.block.1']}

    ```
    """
    blocks: dict[str, dict[int, str]] = {}
    for layer in layers:
        prefix, _, number = layer.rpartition(".")
        if number.isdecimal():
            blocks.setdefault(prefix, {})[int(number)] = layer
    return {
        prefix: [numbered[i] for i in sorted(numbered)]
        for prefix, numbered in blocks.items()
        if len(numbered) > 1 and prefix not in growing
    }


def growing_stacks(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the prefixes of blocks in which parameters of the same name have different shapes.

    The stages of a convolutional network grow from one to the next. Their gradient norms cannot be compared.

    Args:
        shapes (`Mapping[str, Sequence[int]]`): Parameter name -> shape, for all parameters of the model.

    Example:

    ```python
    >>> growing_stacks({"stages.0.weight": (8, 4), "stages.1.weight": (16, 8), "layer.0.bias": (4,), "layer.1.bias": (4,)})
    ['stages']

    ```
    """  # noqa: E501
    seen: dict[tuple[str, str], tuple[int, ...]] = {}
    growing = {}
    for name, layer in layer_names(shapes).items():
        prefix, _, number = layer.rpartition(".")
        if number.isdecimal():
            inside = ".".join(_parts(name)).partition(f"{layer}.")[2]
            if seen.setdefault((prefix, inside), tuple(shapes[name])) != tuple(shapes[name]):
                growing[prefix] = True
    return list(growing)
