"""The configuration of [`BertPreLNModel`], light enough to be registered wherever `hf_warmup` is imported."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from transformers import AutoConfig, BertConfig

from ._messages import check_name


class BertPreLNConfig(BertConfig):
    """[`~transformers.BertConfig`] and where the LayerNorms stand.

    Args:
        norm_placement (`str`, defaults to `"pre"`): `"pre"` or `"post"`; `"post"` is transformers' BERT.
        initializer (`str`, defaults to `"normal"`): `"normal"`, transformers' `N(0, initializer_range^2)`, or
            `"xavier_uniform"` with embeddings from `N(0, 1 / hidden_size)`, the paper's setting. With transformers'
            0.02 a small model hides the difference between the two placements.
        kwargs: As in `BertConfig`.

    Example:

    ```python
    >>> BertPreLNConfig(num_hidden_layers=6).norm_placement
    'pre'

    ```
    """

    model_type = "bert-pre-ln"
    norm_placement: str = "pre"
    initializer: str = "normal"

    def __init__(self, norm_placement: str = "pre", initializer: str = "normal", **kwargs: Any):
        self.norm_placement = check_name("norm_placement", norm_placement, ("pre", "post"))
        self.initializer = check_name("initializer", initializer, ("normal", "xavier_uniform"))
        # The Auto classes look for the model of a configuration that they have made: from here on they find ours.
        import_module(".modeling_bert_pre_ln", __package__)
        super().__init__(**kwargs)
        if self.add_cross_attention and norm_placement == "pre":
            raise ValueError("add_cross_attention=True with norm_placement='pre': only encoders are Pre-LN here.")


AutoConfig.register(BertPreLNConfig.model_type, BertPreLNConfig)
