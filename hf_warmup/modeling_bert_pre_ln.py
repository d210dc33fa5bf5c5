"""Pre-LN BERT with the parameters of transformers' Post-LN BERT, built from one configuration.

    Post-LN   x <- LayerNorm(x + Branch(x))        and a LayerNorm after the embeddings
    Pre-LN    x <- x + Branch(LayerNorm(x))        and a LayerNorm after the last layer

At initialization, the gradient of the last layers of a Post-LN model does not shrink with the depth `L`. That of a
Pre-LN model shrinks by `1 / sqrt(L)`. Only the former needs a warmup (Xiong et al. 2020,
https://arxiv.org/abs/2002.04745). In the Pre-LN model, each branch keeps its LayerNorm under the same name and applies
it to its input, and the LayerNorm of the embeddings moves to `encoder.LayerNorm`. So both models have the same number
of parameters and, for a seed, the same initial values. Importing this module registers the model with transformers'
Auto classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

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
    BertPreTrainedModel,
)
from transformers.models.bert.modeling_bert import BertAttention, BertEncoder, BertLayer, BertSelfOutput

from ._validation import check_name


class BertPreLNConfig(BertConfig):
    """A [`~transformers.BertConfig`] with the placement of the LayerNorms.

    Args:
        norm_placement (`str`, defaults to `"pre"`): `"pre"` or `"post"`. `"post"` is transformers' BERT.
        initializer (`str`, defaults to `"normal"`): `"normal"`, transformers' `N(0, initializer_range^2)`, or
            `"xavier_uniform"` with embeddings from `N(0, 1 / hidden_size)`, the paper's setting. With transformers'
            standard deviation of 0.02, a small model does not show the difference between the two placements.
        kwargs: As in `BertConfig`.

    Raises:
        `ValueError`: If a name is unknown, or a Pre-LN model is asked for cross-attention.

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
            raise ValueError(
                "add_cross_attention=True is not supported with norm_placement='pre', which is for encoders only. "
                "Set norm_placement='post'."
            )


class PreLNBertSelfOutput(BertSelfOutput):
    """The output projection of the attention, without residual and LayerNorm."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.dropout(self.dense(hidden_states))


class PreLNBertAttention(BertAttention):
    """`x + Attention(LayerNorm(x))`."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        branch, *rest = cast(tuple[Tensor, ...], super().forward(self.output.LayerNorm(hidden_states), *args, **kwargs))
        return hidden_states + branch, *rest


class PreLNBertLayer(BertLayer):
    """A Pre-LN attention, then `x + FFN(LayerNorm(x))`."""

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        hidden = self.intermediate(self.output.LayerNorm(attention_output))
        return attention_output + self.output.dropout(self.output.dense(hidden))


class PreLNBertEncoder(BertEncoder):
    """Pre-LN layers and a final LayerNorm."""

    LayerNorm: nn.LayerNorm

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        if isinstance(outputs, tuple):
            return (self.LayerNorm(outputs[0]), *outputs[1:])
        outputs.last_hidden_state = self.LayerNorm(outputs.last_hidden_state)
        return outputs


def _to_pre_ln(bert: BertModel) -> None:
    """Turn a Post-LN model into a Pre-LN model in place.

    The modules change their class and keep their parameters. So names, values and the random numbers drawn for them are
    those of transformers' BERT, and its constructors are not repeated here.
    """
    for layer in cast(Any, bert.encoder.layer):
        layer.__class__ = PreLNBertLayer
        layer.attention.__class__ = PreLNBertAttention
        layer.attention.output.__class__ = PreLNBertSelfOutput
    encoder, embeddings = cast(Any, bert.encoder), cast(Any, bert.embeddings)
    encoder.__class__ = PreLNBertEncoder
    encoder.LayerNorm, embeddings.LayerNorm = embeddings.LayerNorm, nn.Identity()


@torch.no_grad()
def _xavier_uniform_(model: nn.Module) -> None:
    # Not in `_init_weights`: transformers calls that of the inner `BertModel`, which is its own class.
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for embedding in embeddings:
        embedding.weight.normal_(std=embedding.embedding_dim**-0.5)
    for module in model.modules():
        if isinstance(module, nn.Linear) and not any(module.weight is other.weight for other in embeddings):
            nn.init.xavier_uniform_(module.weight)


def post_ln_to_pre_ln(state_dict: dict[str, Tensor], num_hidden_layers: int) -> dict[str, Tensor]:
    """Rename the LayerNorms of a Post-LN checkpoint so that every branch keeps the one that produced its input.

    The LayerNorm of the embeddings goes to the first attention, the first one of each layer to its feed-forward branch,
    the second one to the next attention, and the last one of all to the final LayerNorm. The result is an
    initialization to train from: the renamed model computes another function.

    Args:
        state_dict (`dict[str, Tensor]`): The state of a BERT with any head.
        num_hidden_layers (`int`): The number of its layers.

    Returns:
        `dict[str, Tensor]`: The same tensors under the names of the Pre-LN model.

    Example:

    ```python
    >>> list(post_ln_to_pre_ln({"bert.encoder.layer.1.output.LayerNorm.bias": torch.zeros(8)}, num_hidden_layers=2))
    ['bert.encoder.LayerNorm.bias']

    ```
    """
    branches = ("attention.output.LayerNorm", "output.LayerNorm")
    norms = [f"encoder.layer.{i}.{branch}" for i in range(num_hidden_layers) for branch in branches]
    renamed = dict(zip(["embeddings.LayerNorm", *norms], [*norms, "encoder.LayerNorm"], strict=True))

    def rename(key: str) -> str:
        prefix = "bert." if key.startswith("bert.") else ""
        module, _, parameter = key.removeprefix(prefix).rpartition(".")
        return f"{prefix}{renamed[module]}.{parameter}" if module in renamed else key

    return {rename(key): value for key, value in state_dict.items()}


_Base: Any = BertPreTrainedModel if TYPE_CHECKING else object


class _PreLNMixin(_Base):
    """The parts that all heads share: placement, initialization, and loading of a Post-LN checkpoint."""

    _stock: ClassVar[Any]  # transformers' class for the same head
    config_class: Any = BertPreLNConfig
    _no_split_modules: ClassVar[Any] = ["BertEmbeddings", "BertLayer", "PreLNBertLayer"]
    # BERT's heads average over the batch and ignore `num_items_in_batch`. Without this attribute, the Trainer would
    # multiply loss and gradient by the accumulation steps and the number of processes.
    accepts_loss_kwargs = False

    def __init__(self, config: BertPreLNConfig, **kwargs: Any):
        super().__init__(config, **kwargs)
        if config.norm_placement == "pre":
            _to_pre_ln(self.base_model)
        if config.initializer == "xavier_uniform":
            _xavier_uniform_(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint of this class or, by [`post_ln_to_pre_ln`], a Post-LN checkpoint (`model_type` "bert").

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): As in transformers.
            model_args, kwargs: As in transformers. For a Post-LN checkpoint `norm_placement`, by default `"pre"`, too.
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
    """Return the keywords of an equal `BertConfig`. `to_dict` does not contain the attention implementation."""
    ours = ("model_type", "norm_placement", "initializer", "architectures")
    plain = {key: value for key, value in config.to_dict().items() if key not in ours}
    return {**plain, "attn_implementation": config._attn_implementation}


def _is_post_ln(path: Any, kwargs: dict[str, Any]) -> bool:
    download = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    found, _ = BertConfig.get_config_dict(path, **{key: kwargs[key] for key in download if key in kwargs})
    return found.get("model_type") == "bert"


class BertPreLNModel(_PreLNMixin, BertModel):
    """A [`~transformers.BertModel`] with the LayerNorms where `config.norm_placement` puts them.

    `forward` takes the arguments of `BertModel`, such as `input_ids` of shape `(batch, tokens)`. It returns the output
    of `BertModel`: `last_hidden_state` of shape `(batch, tokens, hidden_size)` and `pooler_output` of shape
    `(batch, hidden_size)`.

    Args:
        config ([`BertPreLNConfig`]): The configuration.
        kwargs: As in `BertModel`: `add_pooling_layer`.

    Raises:
        `ValueError`: As `BertModel`, for example if `num_attention_heads` does not divide `hidden_size`.

    Example:

    ```python
    >>> config = BertPreLNConfig(
    ...     vocab_size=32, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    ... )
    >>> model = BertPreLNModel(config)
    >>> tuple(model(input_ids=torch.ones(4, 5, dtype=torch.long)).last_hidden_state.shape)
    (4, 5, 8)
    >>> type(model.encoder.LayerNorm).__name__, type(model.embeddings.LayerNorm).__name__
    ('LayerNorm', 'Identity')

    ```
    """

    _stock = BertModel


class BertPreLNForMaskedLM(_PreLNMixin, BertForMaskedLM):
    """A [`~transformers.BertForMaskedLM`] with the LayerNorms where `config.norm_placement` puts them.

    `forward` takes the arguments of `BertForMaskedLM` and returns its output: `logits` of shape
    `(batch, tokens, vocab_size)` and, for `labels` of shape `(batch, tokens)`, the mean `loss` of the labels other than
    -100.

    Args:
        config ([`BertPreLNConfig`]): The configuration.

    Raises:
        `ValueError`: As `BertForMaskedLM`.

    Example:

    ```python
    >>> config = BertPreLNConfig(
    ...     vocab_size=32, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    ... )
    >>> tokens = torch.ones(4, 5, dtype=torch.long)
    >>> output = BertPreLNForMaskedLM(config)(input_ids=tokens, labels=tokens)
    >>> tuple(output.logits.shape), tuple(output.loss.shape)
    ((4, 5, 32), ())

    ```
    """

    _stock = BertForMaskedLM


class BertPreLNForSequenceClassification(_PreLNMixin, BertForSequenceClassification):
    """A [`~transformers.BertForSequenceClassification`] with the LayerNorms where `config.norm_placement` puts them.

    `forward` takes the arguments of `BertForSequenceClassification` and returns its output: `logits` of shape
    `(batch, num_labels)` and, for `labels` of shape `(batch,)`, the mean `loss`.

    Args:
        config ([`BertPreLNConfig`]): The configuration.

    Raises:
        `ValueError`: As `BertForSequenceClassification`.

    Example:

    ```python
    >>> config = BertPreLNConfig(
    ...     vocab_size=32, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=3
    ... )
    >>> tokens, labels = torch.ones(4, 5, dtype=torch.long), torch.tensor([0, 1, 2, 0])
    >>> output = BertPreLNForSequenceClassification(config)(input_ids=tokens, labels=labels)
    >>> tuple(output.logits.shape), tuple(output.loss.shape)
    ((4, 3), ())

    ```
    """

    _stock = BertForSequenceClassification


def make_pair(
    config: BertConfig, seed: int, model_class: type = BertPreLNForMaskedLM
) -> tuple[BertPreLNForMaskedLM, BertPreLNForMaskedLM]:
    """Build a Post-LN and a Pre-LN model with the same initial values, for a controlled comparison.

    Args:
        config (`BertConfig`): A configuration of either placement. Each model gets a copy with its own.
        seed (`int`): The seed of the initial values. The global random state is restored.
        model_class (`type`, defaults to [`BertPreLNForMaskedLM`]): A class of this module.

    Returns:
        `tuple`: The Post-LN and the Pre-LN model.

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
