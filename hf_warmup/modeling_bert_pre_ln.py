"""Pre-LN BERT beside transformers' Post-LN one, from one configuration, with the same parameters.

    Post-LN   x <- LayerNorm(x + Branch(x))        and a LayerNorm behind the embeddings
    Pre-LN    x <- x + Branch(LayerNorm(x))        and a LayerNorm behind the last layer

Xiong et al. 2020, https://arxiv.org/abs/2002.04745: at initialisation the gradient of a Post-LN model's last layers
does not shrink with depth, that of a Pre-LN model does by `1 / sqrt(L)`; the first needs a warmup. Each branch keeps
its LayerNorm (under the same name), now in front of it, and the embedding's moves to `encoder.LayerNorm`: both arms
have the same number of parameters and, for a seed, the same values.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)
from transformers.models.bert.modeling_bert import BertAttention, BertEncoder, BertLayer, BertSelfOutput

from ._validation import check_name


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
        super().__init__(**kwargs)
        if self.add_cross_attention and norm_placement == "pre":
            raise ValueError("add_cross_attention=True with norm_placement='pre': only encoders are Pre-LN here.")


AutoConfig.register(BertPreLNConfig.model_type, BertPreLNConfig)


class PreLNBertSelfOutput(BertSelfOutput):
    """The attention branch's last step: no residual, no LayerNorm."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.dropout(self.dense(hidden_states))


class PreLNBertAttention(BertAttention):
    """`x + Attention(LayerNorm(x))`."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        branch, *rest = super().forward(self.output.LayerNorm(hidden_states), *args, **kwargs)
        return hidden_states + branch, *rest


class PreLNBertLayer(BertLayer):
    """`x + FFN(LayerNorm(x))` behind a Pre-LN attention."""

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        hidden = self.intermediate(self.output.LayerNorm(attention_output))
        return attention_output + self.output.dropout(self.output.dense(hidden))


class PreLNBertEncoder(BertEncoder):
    """The layers and the final LayerNorm."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        if isinstance(outputs, tuple):
            return (self.LayerNorm(outputs[0]), *outputs[1:])
        outputs.last_hidden_state = self.LayerNorm(outputs.last_hidden_state)
        return outputs


def _to_pre_ln(bert: BertModel) -> None:
    """Turn a Post-LN model into a Pre-LN one in place.

    The modules change their class and keep their parameters: names, values and the random numbers drawn for them are
    those of transformers' BERT, without a second copy of its constructors.
    """
    for layer in bert.encoder.layer:
        layer.__class__ = PreLNBertLayer
        layer.attention.__class__ = PreLNBertAttention
        layer.attention.output.__class__ = PreLNBertSelfOutput
    bert.encoder.__class__ = PreLNBertEncoder
    bert.encoder.LayerNorm = bert.embeddings.LayerNorm
    bert.embeddings.LayerNorm = nn.Identity()


@torch.no_grad()
def _xavier_uniform_(model: nn.Module) -> None:
    # Not in `_init_weights`: transformers asks the inner `BertModel` for its own, which is the stock one.
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for module in embeddings:
        module.weight.normal_(std=module.embedding_dim**-0.5)
    for module in model.modules():
        if isinstance(module, nn.Linear) and not any(module.weight is other.weight for other in embeddings):
            nn.init.xavier_uniform_(module.weight)


def post_ln_to_pre_ln(state_dict: dict[str, Tensor], num_hidden_layers: int) -> dict[str, Tensor]:
    """Rename a Post-LN checkpoint's LayerNorms so that every branch keeps the one that fed it.

    The embedding's goes to the first attention, each layer's first to its feed-forward branch, each layer's second to
    the next attention, the last to the final LayerNorm. An initialisation to train from: the function computed changes.

    Args:
        state_dict (`dict[str, Tensor]`): Of a BERT with any head.
        num_hidden_layers (`int`): Layers in it.

    Returns:
        `dict[str, Tensor]`: The same tensors under Pre-LN's names.
    """
    feeds = ["embeddings.LayerNorm."]
    fed = []
    for i in range(num_hidden_layers):
        feeds += [f"encoder.layer.{i}.attention.output.LayerNorm.", f"encoder.layer.{i}.output.LayerNorm."]
        fed += [f"encoder.layer.{i}.attention.output.LayerNorm.", f"encoder.layer.{i}.output.LayerNorm."]
    renamed = dict(zip(feeds, [*fed, "encoder.LayerNorm."], strict=True))

    def rename(key: str) -> str:
        prefix, parameter = key.removeprefix("bert.").rsplit(".", 1)
        moved = renamed.get(prefix + ".")
        return key if moved is None else key[: len(key) - len(prefix) - len(parameter) - 1] + moved + parameter

    return {rename(key): value for key, value in state_dict.items()}


class _PreLNMixin:
    """What every head shares: placement, initialisation, an honest loss, and loading a Post-LN checkpoint."""

    config_class = BertPreLNConfig
    _no_split_modules: ClassVar[list[str]] = ["BertEmbeddings", "BertLayer", "PreLNBertLayer"]
    # BERT's heads average over the batch and ignore `num_items_in_batch`: without this the Trainer multiplies loss and
    # gradient by accumulation steps times processes.
    accepts_loss_kwargs = False

    def __init__(self, config: BertPreLNConfig, **kwargs: Any):
        super().__init__(config, **kwargs)
        if config.norm_placement == "pre":
            _to_pre_ln(self.base_model)
        if config.initializer == "xavier_uniform":
            _xavier_uniform_(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As in transformers; a Post-LN checkpoint (`model_type` "bert") is loaded by [`post_ln_to_pre_ln`].

        Such a load takes `norm_placement` (by default `"pre"`) beside transformers' keywords.
        """
        if pretrained_model_name_or_path is None or not _is_post_ln(pretrained_model_name_or_path, kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        config, placement = kwargs.get("config"), kwargs.pop("norm_placement", None)
        if isinstance(config, BertPreLNConfig):
            placement = placement or config.norm_placement
            kwargs["config"] = BertConfig(**_plain(config))
        placement = placement or "pre"
        loaded = cls._stock.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        stock, *info = loaded if isinstance(loaded, tuple) else (loaded,)
        with torch.random.fork_rng(devices=[]):
            model = cls(BertPreLNConfig(norm_placement=placement, **_plain(stock.config))).to(stock.dtype)
        state_dict = stock.state_dict()
        if placement == "pre":
            state_dict = post_ln_to_pre_ln(state_dict, stock.config.num_hidden_layers)
        model.load_state_dict(state_dict)
        return (model.eval(), *info) if info else model.eval()


def _plain(config: BertConfig) -> dict[str, Any]:
    """Keywords of a `BertConfig` like this one; its attention implementation is not in `to_dict`."""
    ours = ("model_type", "norm_placement", "initializer", "architectures")
    plain = {key: value for key, value in config.to_dict().items() if key not in ours}
    return {**plain, "attn_implementation": config._attn_implementation}


def _is_post_ln(path: Any, kwargs: dict[str, Any]) -> bool:
    download = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    found, _ = BertConfig.get_config_dict(path, **{key: kwargs[key] for key in download if key in kwargs})
    return found.get("model_type") == "bert"


class BertPreLNModel(_PreLNMixin, BertModel):
    """[`~transformers.BertModel`] with `config.norm_placement`."""

    _stock = BertModel


class BertPreLNForMaskedLM(_PreLNMixin, BertForMaskedLM):
    """[`~transformers.BertForMaskedLM`] with `config.norm_placement`."""

    _stock = BertForMaskedLM


class BertPreLNForSequenceClassification(_PreLNMixin, BertForSequenceClassification):
    """[`~transformers.BertForSequenceClassification`] with `config.norm_placement`."""

    _stock = BertForSequenceClassification


def make_pair(
    config: BertConfig, seed: int, model_class: type = BertPreLNForMaskedLM
) -> tuple[BertPreLNForMaskedLM, BertPreLNForMaskedLM]:
    """The controlled pair: a Post-LN and a Pre-LN model with the same initial values.

    Args:
        config (`BertConfig`): Of either placement; both models get a copy with their own.
        seed (`int`): Seed of the initial values; the global random state is left as it was.
        model_class (`type`, defaults to [`BertPreLNForMaskedLM`]): A head of this module.

    Returns:
        `tuple`: `(post, pre)`.

    Example:

    ```python
    >>> small = {"vocab_size": 32, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256}
    >>> post, pre = make_pair(BertPreLNConfig(num_hidden_layers=2, initializer="xavier_uniform", **small), seed=0)
    >>> post.num_parameters() == pre.num_parameters()
    True

    ```
    """
    initializer = getattr(config, "initializer", "normal")

    def build(norm_placement: str) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return model_class(
                BertPreLNConfig(norm_placement=norm_placement, initializer=initializer, **_plain(config))
            )

    return build("post"), build("pre")


AutoConfig.register(BertPreLNConfig.model_type, BertPreLNConfig)
AutoModel.register(BertPreLNConfig, BertPreLNModel)
AutoModelForMaskedLM.register(BertPreLNConfig, BertPreLNForMaskedLM)
AutoModelForSequenceClassification.register(BertPreLNConfig, BertPreLNForSequenceClassification)
