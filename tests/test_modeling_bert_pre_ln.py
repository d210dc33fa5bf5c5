"""Pre-LN BERT against transformers' MegatronBert and BERT, the paper's exponents, and save, load, copy."""

import copy
import json
import pickle
import re

import numpy as np
import pytest
import torch
import transformers
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from hf_warmup.modeling_bert_pre_ln import (
    BertPreLNConfig,
    BertPreLNForMaskedLM,
    BertPreLNForSequenceClassification,
    BertPreLNModel,
    make_pair,
)
from tiny import TINY


SMALL = {**TINY, "num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
TRANSFORMERS_5 = int(transformers.__version__.split(".")[0]) >= 5
CLASSES = {
    BertPreLNModel: (transformers.AutoModel, BertModel),
    BertPreLNForMaskedLM: (transformers.AutoModelForMaskedLM, BertForMaskedLM),
    BertPreLNForSequenceClassification: (
        transformers.AutoModelForSequenceClassification,
        BertForSequenceClassification,
    ),
}
classes = pytest.mark.parametrize("cls", CLASSES)
placements = pytest.mark.parametrize("placement", ["post", "pre"])
initializers = pytest.mark.parametrize("initializer", ["normal", "xavier_uniform"])
exactly = {"rtol": 0, "atol": 0}


def build(cls, config, seed=0):
    torch.manual_seed(seed)
    return cls(config)


def pre_ln(cls=BertPreLNForMaskedLM, shaken=True, **config):
    """A Pre-LN model; shaken so that no LayerNorm is the identity and no bias 0."""
    model = build(cls, BertPreLNConfig(**{**SMALL, **config}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape) if shaken else 0.0)
    return model


def batch(padded=False, vocab_size=SMALL["vocab_size"], size=(4, 12)):
    """Random tokens and labels; with `padded` the last 5 positions of every other row are padding."""
    ids, labels = torch.randint(1, vocab_size, (2, *size), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[::2, -5:] = 0
    padding = mask == 0
    return {
        "input_ids": ids.masked_fill(padding, 0),
        "attention_mask": mask,
        "labels": labels.masked_fill(padding, -100),
    }


@torch.no_grad()
def output(model):
    """The first output in evaluation mode: hidden states or logits."""
    ids = batch(padded=True)
    return model.eval()(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])[0]


def gradients(model, inputs):
    model.train()(**inputs).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@initializers
def test_pair_shares_every_value_and_differs_in_one_name(initializer):
    config = BertPreLNConfig(initializer=initializer, num_labels=3, **SMALL)
    post, pre = make_pair(config, seed=3)
    assert (post.config.norm_placement, pre.config.norm_placement) == ("post", "pre")
    assert post.num_parameters() == pre.num_parameters() == BertForMaskedLM(BertConfig(**SMALL)).num_parameters()
    post, pre = post.state_dict(), pre.state_dict()
    expected = {key.replace("embeddings.LayerNorm", "encoder.LayerNorm"): value for key, value in post.items()}
    torch.testing.assert_close(pre, expected, **exactly)
    assert set(post) - set(pre) == {f"bert.embeddings.LayerNorm.{part}" for part in ("weight", "bias")}
    other = make_pair(config, seed=4)[1].state_dict()
    drawn = [key for key, value in pre.items() if value.is_floating_point() and value.std() > 0]
    assert len(drawn) > 18
    assert not any(torch.equal(pre[key], other[key]) for key in drawn)


def test_pair_leaves_random_state_and_config_alone():
    config = BertPreLNConfig(**SMALL)
    state, before = torch.get_rng_state(), config.to_dict()
    make_pair(config, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert config.to_dict() == before


def test_pair_keeps_the_rest_of_the_config():
    config = BertPreLNConfig(num_labels=3, layer_norm_eps=1e-5, attn_implementation="eager", **SMALL)
    for model in make_pair(config, seed=0, model_class=BertPreLNForSequenceClassification):
        assert isinstance(model, BertPreLNForSequenceClassification)
        assert (model.config.num_labels, model.config.layer_norm_eps) == (3, 1e-5)
        assert model.config._attn_implementation == "eager"


@classes
def test_post_arm_is_transformers_bert(cls):
    stock = build(CLASSES[cls][1], BertConfig(**SMALL), seed=5)
    post, _ = make_pair(BertConfig(**SMALL), seed=5, model_class=cls)
    torch.testing.assert_close(post.state_dict(), stock.state_dict(), **exactly)
    torch.testing.assert_close(output(post), output(stock), **exactly)
    if cls is BertPreLNForMaskedLM:
        torch.testing.assert_close(post(**batch()).loss, stock(**batch()).loss, **exactly)


@placements
def test_xavier_uniform(placement):
    width, kwargs = 64, {**SMALL, "hidden_size": 64, "intermediate_size": 256}
    config = BertPreLNConfig(initializer="xavier_uniform", norm_placement=placement, **kwargs)
    for cls in (BertPreLNForMaskedLM, BertPreLNForSequenceClassification):
        model = build(cls, config)
        decoder = model.get_output_embeddings()
        assert decoder is None or decoder.weight is model.get_input_embeddings().weight
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, torch.nn.Linear) and module is not decoder:
                bound = (6 / (module.in_features + module.out_features)) ** 0.5
                assert weight.abs().max() <= bound
                # Five standard errors of the standard deviation of n uniform numbers are 2.2 / sqrt(n).
                assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=2.2 / weight.numel() ** 0.5)
                assert not module.bias.any()
            elif isinstance(module, torch.nn.Embedding):
                assert weight.std().item() == pytest.approx(width**-0.5, rel=3.5 / weight.numel() ** 0.5)


@pytest.mark.parametrize("padded", [False, True])
def test_megatron_bert_is_the_same_model(padded):
    def theirs(name):
        name = re.sub(r"(layer\.\d+(\.attention)?)\.output\.LayerNorm", r"\1.ln", name)
        return name.replace("encoder.LayerNorm", "encoder.ln")

    model = pre_ln(attn_implementation="eager")
    oracle = transformers.MegatronBertForMaskedLM(transformers.MegatronBertConfig(attn_implementation="eager", **SMALL))
    oracle.load_state_dict({theirs(name): value for name, value in model.state_dict().items()})
    # float32: 2e-7 and 6e-8 were measured for values of this size.
    torch.testing.assert_close(output(model), output(oracle), rtol=0, atol=2e-6)
    ours = {theirs(name): grad for name, grad in gradients(model, batch(padded)).items()}
    assert len(ours) == len(list(model.parameters()))
    torch.testing.assert_close(ours, gradients(oracle, batch(padded)), rtol=0, atol=1e-6)


def test_without_branches_only_the_final_layer_norm_is_left():
    model = pre_ln(BertPreLNModel)
    for layer in model.encoder.layer:
        for dense in (layer.attention.output.dense, layer.output.dense):
            torch.nn.init.zeros_(dense.weight)
            torch.nn.init.zeros_(dense.bias)
    embedded, norm = model.embeddings(batch(padded=True)["input_ids"]), model.encoder.LayerNorm
    expected = torch.nn.functional.layer_norm(embedded, (32,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(output(model), expected.detach(), **exactly)


def test_sdpa_equals_eager():
    models = [pre_ln(attn_implementation=name) for name in ("sdpa", "eager")]
    assert [model.config._attn_implementation for model in models] == ["sdpa", "eager"]
    torch.testing.assert_close(output(models[0]), output(models[1]), rtol=0, atol=2e-6)  # float32


@placements
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_changes_nothing(placement, attention):
    model = pre_ln(norm_placement=placement, attn_implementation=attention).eval()
    ids = batch(padded=True)["input_ids"]
    alone = model(input_ids=ids[::2, :-5]).logits
    torch.testing.assert_close(output(model)[::2, :-5], alone.detach(), rtol=0, atol=2e-6)  # float32
    assert not torch.allclose(model(input_ids=ids).logits[::2, :-5], alone, atol=1e-3)


def test_gradient_checkpointing():
    model = pre_ln()
    expected = {name: grad.clone() for name, grad in gradients(model, batch()).items()}
    model.zero_grad()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    calls = []
    model.bert.encoder.layer[1].intermediate.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(gradients(model, batch()), expected, **exactly)
    assert len(calls) == 2  # once forward, once again backward


@pytest.mark.parametrize("cls", [BertPreLNModel, BertPreLNForMaskedLM])
def test_hidden_states(cls):
    model = pre_ln(cls).eval()
    ids = batch()["input_ids"]
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(hidden) == 4
    torch.testing.assert_close(hidden[0], model.base_model.embeddings(ids), **exactly)
    if TRANSFORMERS_5:
        torch.testing.assert_close(hidden[-1], model.base_model(input_ids=ids).last_hidden_state, **exactly)


@classes
def test_trainer_hands_over_no_number_of_items(cls, tmp_path):
    args = transformers.TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    assert transformers.Trainer(model=pre_ln(cls), args=args).model_accepts_loss_kwargs is False


@placements
def test_training_lowers_the_loss(placement):
    model = pre_ln(shaken=False, norm_placement=placement, initializer="xavier_uniform").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        losses.append(model(**batch()).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(clone):
    model = pre_ln()
    torch.testing.assert_close(output(clone(model)), output(model), **exactly)


@classes
@placements
@initializers
def test_save_and_load_through_auto_classes(cls, placement, initializer, tmp_path):
    model = pre_ln(cls, norm_placement=placement, initializer=initializer)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["norm_placement"] == placement
    loaded = CLASSES[cls][0].from_pretrained(tmp_path)
    assert type(loaded) is cls
    assert (loaded.config.norm_placement, loaded.config.initializer) == (placement, initializer)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), **exactly)
    torch.testing.assert_close(output(loaded), output(model), **exactly)


def test_a_pretrained_body_takes_a_new_head(tmp_path):
    body = pre_ln(initializer="xavier_uniform")
    body.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    state = {key: value for key, value in loaded.bert.state_dict().items() if not key.startswith("pooler.")}
    torch.testing.assert_close(state, dict(body.bert.state_dict()), **exactly)
    assert loaded.classifier.out_features == 5
    assert output(loaded).isfinite().all()


def stock_checkpoint(folder, stock_class=BertForMaskedLM):
    """transformers' BERT whose LayerNorms hold 1, 2, 3, ... in the order of the data's way through them."""
    model = build(stock_class, BertConfig(**SMALL))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    for i, norm in enumerate(norms, 1):
        torch.nn.init.constant_(norm.weight, i)
        torch.nn.init.constant_(norm.bias, -i)
    model.save_pretrained(folder)
    return model


@classes
def test_post_ln_checkpoint_as_post_ln(cls, tmp_path):
    stock = stock_checkpoint(tmp_path, CLASSES[cls][1])
    model = cls.from_pretrained(tmp_path, norm_placement="post")
    assert (type(model), model.config.norm_placement) == (cls, "post")
    assert not model.training
    torch.testing.assert_close(output(model), output(stock), **exactly)


@classes
def test_post_ln_checkpoint_as_pre_ln(cls, tmp_path):
    stock = stock_checkpoint(tmp_path, CLASSES[cls][1]).state_dict()
    model = cls.from_pretrained(tmp_path)
    assert (type(model), model.config.norm_placement) == (cls, "pre")
    sites = [f"encoder.layer.{i}.{branch}.LayerNorm" for i in range(3) for branch in ("attention.output", "output")]
    for i, site in enumerate([*sites, "encoder.LayerNorm"], 1):
        norm = model.base_model.get_submodule(site)
        assert (norm.weight.unique().item(), norm.bias.unique().item()) == (i, -i), site
    others = {key: value for key, value in stock.items() if "LayerNorm" not in key or key.startswith("cls.")}
    torch.testing.assert_close({key: model.state_dict()[key] for key in others}, others, **exactly)


@pytest.mark.parametrize(
    ("kwargs", "attribute", "value"),
    [
        ({"num_labels": 5}, "num_labels", 5),
        ({"hidden_dropout_prob": 0.3}, "hidden_dropout_prob", 0.3),
        ({"config": BertConfig(num_labels=4, **SMALL)}, "num_labels", 4),
        ({"config": BertPreLNConfig(num_labels=4, norm_placement="post", **SMALL)}, "norm_placement", "post"),
        ({"dtype": torch.bfloat16}, "dtype", torch.bfloat16),
        ({"attn_implementation": "eager"}, "_attn_implementation", "eager"),
    ],
)
def test_post_ln_checkpoint_takes_transformers_keywords(kwargs, attribute, value, tmp_path):
    stock_checkpoint(tmp_path)
    model = BertPreLNForSequenceClassification.from_pretrained(tmp_path, **kwargs)
    assert getattr(model.config, attribute) == value
    assert model.classifier.out_features == model.config.num_labels
    assert model.classifier.weight.dtype == kwargs.get("dtype", torch.float32)


def test_post_ln_checkpoint_with_config_of_a_folder_and_loading_info(tmp_path):
    stock_checkpoint(tmp_path)
    assert BertPreLNForMaskedLM.from_pretrained(tmp_path, config=str(tmp_path)).config.norm_placement == "pre"
    model, info = BertPreLNForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, BertPreLNForMaskedLM)
    assert not info["missing_keys"]


def test_wrong_names(tmp_path):
    with pytest.raises(ValueError, match="norm_placement='sandwich'"):
        BertPreLNConfig(norm_placement="sandwich")
    with pytest.raises(ValueError, match="initializer='he'"):
        BertPreLNConfig(initializer="he")
    stock_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="norm_placement='sandwich'"):
        BertPreLNModel.from_pretrained(tmp_path, norm_placement="sandwich")


@pytest.mark.slow
def test_last_ffn_gradient_against_depth():
    """Xiong et al.: at initialisation it is O(1) in the depth for Post-LN and O(1 / sqrt(L)) for Pre-LN."""
    depths, norms = (2, 4, 8, 16, 24), {"post": [], "pre": []}
    inputs = batch(vocab_size=1000, size=(16, 32))
    for seed in range(5):
        for depth in depths:
            sizes = {"vocab_size": 1000, "hidden_size": 128, "num_hidden_layers": depth, "intermediate_size": 512}
            config = {**SMALL, **sizes, "max_position_embeddings": 32}
            for model in make_pair(BertPreLNConfig(initializer="xavier_uniform", **config), seed):
                model(**inputs).loss.backward()
                grad = model.bert.encoder.layer[-1].output.dense.weight.grad
                norms[model.config.norm_placement].append(grad.norm().item())
    slopes = {
        name: np.polyfit(np.log(depths), np.log(np.reshape(values, (5, -1))).mean(0), 1)[0]
        for name, values in norms.items()
    }
    assert abs(slopes["post"]) < 0.15
    assert -0.65 < slopes["pre"] < -0.38
