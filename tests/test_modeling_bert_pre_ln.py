"""Pre-LN BERT against transformers' MegatronBert and BERT, the paper's exponents, saving, loading and copying."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import layer_norm
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from hf_warmup import modeling_bert_pre_ln as ours
from hf_warmup.modeling_bert_pre_ln import BertPreLNConfig, BertPreLNForMaskedLM, BertPreLNModel, make_pair

from .testing_utils import TINY


SMALL = {**TINY, "num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
CLASSES = (BertPreLNModel, BertPreLNForMaskedLM, ours.BertPreLNForSequenceClassification)
STOCK = dict(zip(CLASSES, (BertModel, BertForMaskedLM, BertForSequenceClassification), strict=True))
classes = pytest.mark.parametrize("cls", CLASSES)
initializers = pytest.mark.parametrize("initializer", ["normal", "xavier_uniform"])
attentions = pytest.mark.parametrize("attention", ["sdpa", "eager"])
placements = pytest.mark.parametrize("placement", ["post", "pre"])


@torch.no_grad()
def perturbed(cls=BertPreLNForMaskedLM, **config):
    """A model, Pre-LN by default, in which no LayerNorm is the identity and no bias is 0."""
    torch.manual_seed(0)
    model = cls(BertPreLNConfig(**{**SMALL, **config}))
    for p in model.parameters():
        p.add_(0.1 * torch.randn(p.shape))
    return model


def batch(padded=False, vocab_size=SMALL["vocab_size"], size=(4, 12)):
    """Random tokens and labels; with `padded` the last 5 positions of every other row are padding."""
    ids, labels = torch.randint(1, vocab_size, (2, *size), generator=torch.Generator().manual_seed(1))
    padding = torch.zeros_like(ids, dtype=torch.bool)
    padding[::2, -5:] = padded
    ids, labels = ids.masked_fill(padding, 0), labels.masked_fill(padding, -100)
    return {"input_ids": ids, "attention_mask": (~padding).long(), "labels": labels}


@torch.no_grad()
def output(model):
    """The first output in evaluation mode on a padded batch: hidden states or logits."""
    inputs = batch(padded=True)
    return model.eval()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])[0]


def gradients(model, inputs):
    model.zero_grad()
    model.train()(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(actual, expected, atol=0.0):
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=atol)


@initializers
def test_make_pair_shares_every_value_and_differs_in_one_name(initializer):
    config = BertPreLNConfig(initializer=initializer, **SMALL)
    before, random_state = config.to_dict(), torch.get_rng_state()
    post, pre = make_pair(config, seed=3)
    assert config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (post.config.norm_placement, pre.config.norm_placement) == ("post", "pre")
    assert post.num_parameters() == pre.num_parameters() == BertForMaskedLM(BertConfig(**SMALL)).num_parameters()
    post, pre, other = post.state_dict(), pre.state_dict(), make_pair(config, seed=4)[1].state_dict()
    assert set(post) - set(pre) == {f"bert.embeddings.LayerNorm.{part}" for part in ("weight", "bias")}
    assert_same(pre, {name.replace("embeddings.LayerNorm", "encoder.LayerNorm"): post[name] for name in post})
    drawn = [name for name, value in pre.items() if value.std() > 0]
    assert len(drawn) == 3 + 6 * 3 + 2  # embeddings, matrices of the layers, the head's and the tied decoder
    assert not any(torch.equal(pre[name], other[name]) for name in drawn)


def test_make_pair_keeps_the_rest_of_the_config():
    config = BertPreLNConfig(num_labels=3, attn_implementation="eager", **SMALL)
    for model in make_pair(config, 0, ours.BertPreLNForSequenceClassification):
        assert (type(model), model.config.num_labels) == (ours.BertPreLNForSequenceClassification, 3)
        assert model.config._attn_implementation == "eager"


@classes
def test_post_ln_model_equals_transformers_bert(cls):
    torch.manual_seed(5)
    stock = STOCK[cls](BertConfig(**SMALL))
    post, _ = make_pair(BertConfig(**SMALL), seed=5, model_class=cls)
    assert_same(post.state_dict(), stock.state_dict())
    assert_same(output(post), output(stock))
    if cls is BertPreLNForMaskedLM:
        assert_same(post(**batch()).loss, stock(**batch()).loss)


@placements
@classes
def test_xavier_uniform_has_the_bounds_of_glorot(cls, placement):
    model = make_pair(BertPreLNConfig(initializer="xavier_uniform", **SMALL), 0, cls)[placement == "pre"]
    decoder = model.get_output_embeddings() if cls is BertPreLNForMaskedLM else None
    assert decoder is None or decoder.weight is model.bert.embeddings.word_embeddings.weight
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, torch.nn.Linear) and module is not decoder:
            bound = (6 / (module.in_features + module.out_features)) ** 0.5
            assert weight.abs().max() <= bound
            # Five standard errors of the standard deviation of n uniform numbers are 2.2 / sqrt(n), of normal ones 3.5.
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=2.2 / weight.numel() ** 0.5)
            assert not module.bias.any()
        elif isinstance(module, torch.nn.Embedding):
            assert weight.std().item() == pytest.approx(32**-0.5, rel=3.5 / weight.numel() ** 0.5)


@pytest.mark.parametrize("padded", [False, True])
@attentions
def test_pre_ln_model_equals_megatron_bert(attention, padded):
    def theirs(name):
        name = re.sub(r"(layer\.\d+(\.attention)?)\.output\.LayerNorm", r"\1.ln", name)
        return name.replace("encoder.LayerNorm", "encoder.ln")

    model = perturbed(attn_implementation=attention)
    assert model.config._attn_implementation == attention  # Megatron's is always eager
    oracle = transformers.MegatronBertForMaskedLM(transformers.MegatronBertConfig(**SMALL))
    oracle.load_state_dict({theirs(name): value for name, value in model.state_dict().items()})
    # float32: 2e-7 and 6e-8 were measured for values of this size.
    assert_same(output(model), output(oracle), atol=2e-6)
    found = {theirs(name): gradient for name, gradient in gradients(model, batch(padded)).items()}
    assert len(found) == len(list(model.parameters()))
    assert_same(found, gradients(oracle, batch(padded)), atol=1e-6)


def test_pre_ln_model_without_branches_is_its_final_layer_norm():
    model = perturbed(BertPreLNModel)
    zeroed = [torch.nn.init.zeros_(p) for name, p in model.named_parameters() if "output.dense" in name]
    assert len(zeroed) == 3 * 4
    embedded, final = model.embeddings(batch(padded=True)["input_ids"]), model.encoder.LayerNorm
    assert_same(output(model), layer_norm(embedded, (32,), final.weight, final.bias, final.eps).detach())


@placements
@attentions
@torch.no_grad()
def test_output_does_not_depend_on_padding(placement, attention):
    model = perturbed(norm_placement=placement, attn_implementation=attention).eval()
    ids = batch(padded=True)["input_ids"]
    alone = model(input_ids=ids[::2, :-5]).logits
    assert_same(output(model)[::2, :-5], alone, atol=2e-6)  # float32
    assert not torch.allclose(model(input_ids=ids).logits[::2, :-5], alone, atol=1e-3)  # without the mask


def test_deepcopy_and_pickle_keep_the_output():
    model = perturbed()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(output(copied), output(model))


def test_gradient_checkpointing_keeps_the_gradients():
    model, calls = perturbed(), []
    expected = gradients(model, batch())
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.bert.encoder.layer[1].intermediate.register_forward_hook(lambda *_: calls.append(1))
    assert_same(gradients(model, batch()), expected)
    assert len(calls) == 2  # once forward, once again backward


def test_hidden_states_end_with_the_final_layer_norm():
    model, ids = perturbed().eval(), batch()["input_ids"]
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(hidden) == 1 + 3
    assert_same(hidden[0], model.bert.embeddings(ids))
    if not transformers.__version__.startswith("4."):
        assert_same(hidden[-1], model.bert(input_ids=ids).last_hidden_state)


@classes
def test_trainer_passes_no_num_items_in_batch(cls, tmp_path):
    args = transformers.TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    assert transformers.Trainer(model=perturbed(cls), args=args).model_accepts_loss_kwargs is False


@placements
def test_training_lowers_the_loss(placement):
    model = make_pair(BertPreLNConfig(initializer="xavier_uniform", **SMALL), seed=0)[placement == "pre"]
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=2e-3), []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(model(**batch()).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@classes
@placements
@initializers
def test_save_and_load_through_auto_classes(cls, placement, initializer, tmp_path):
    model = perturbed(cls, norm_placement=placement, initializer=initializer)
    model.save_pretrained(tmp_path)
    auto = "AutoModel" + cls.__name__.removeprefix("BertPreLN").removeprefix("Model")
    loaded = getattr(transformers, auto).from_pretrained(tmp_path)
    assert type(loaded) is cls
    assert (loaded.config.norm_placement, loaded.config.initializer) == (placement, initializer)
    assert_same(loaded.state_dict(), model.state_dict())
    assert_same(output(loaded), output(model))


def test_from_pretrained_adds_a_new_head_to_a_pretrained_body(tmp_path):
    body = perturbed(initializer="xavier_uniform")
    body.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert_same({name: loaded.bert.state_dict()[name] for name in body.bert.state_dict()}, body.bert.state_dict())
    assert output(loaded).shape == (4, 5)


def stock_checkpoint(folder, cls=BertPreLNForMaskedLM):
    """Save transformers' BERT with LayerNorms of 1, 2, 3, ... in the order in which the data passes them."""
    model = STOCK[cls](BertConfig(**SMALL))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    for i, norm in enumerate(norms, 1):
        norm.load_state_dict({"weight": torch.full((32,), float(i)), "bias": torch.full((32,), float(-i))})
    model.save_pretrained(folder)
    return model


@classes
def test_from_pretrained_of_a_post_ln_checkpoint_as_post_ln(cls, tmp_path):
    stock = stock_checkpoint(tmp_path, cls)
    model = cls.from_pretrained(tmp_path, norm_placement="post")
    assert (type(model), model.config.norm_placement, model.training) == (cls, "post", False)
    assert_same(output(model), output(stock))


@classes
def test_from_pretrained_of_a_post_ln_checkpoint_as_pre_ln_moves_the_layer_norms(cls, tmp_path):
    stock = stock_checkpoint(tmp_path, cls).state_dict()
    model = cls.from_pretrained(tmp_path)
    assert (type(model), model.config.norm_placement, model.training) == (cls, "pre", False)
    sites = [f"encoder.layer.{i}.{branch}.LayerNorm" for i in range(3) for branch in ("attention.output", "output")]
    for i, site in enumerate([*sites, "encoder.LayerNorm"], 1):
        norm = model.base_model.get_submodule(site)
        assert (norm.weight.unique().item(), norm.bias.unique().item()) == (i, -i), site
    others = [name for name in stock if "LayerNorm" not in name or name.startswith("cls.")]
    assert_same({name: model.state_dict()[name] for name in others}, {name: stock[name] for name in others})


@pytest.mark.parametrize(
    ("kwargs", "attribute", "value"),
    [
        ({"num_labels": 5}, "num_labels", 5),
        ({"hidden_dropout_prob": 0.3}, "hidden_dropout_prob", 0.3),
        ({"config": BertConfig(num_labels=4, **SMALL)}, "num_labels", 4),
        ({"config": BertPreLNConfig(num_labels=4, norm_placement="post", **SMALL)}, "norm_placement", "post"),
        ({"config": "."}, "norm_placement", "pre"),
        ({"dtype": torch.bfloat16}, "dtype", torch.bfloat16),
        ({"attn_implementation": "eager"}, "_attn_implementation", "eager"),
    ],
)
def test_from_pretrained_of_a_post_ln_checkpoint_takes_transformers_keywords(
    kwargs, attribute, value, tmp_path, monkeypatch
):
    stock_checkpoint(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = ours.BertPreLNForSequenceClassification.from_pretrained(tmp_path, **kwargs)
    assert getattr(model.config, attribute) == value
    assert model.classifier.out_features == model.config.num_labels
    assert model.classifier.weight.dtype == kwargs.get("dtype", torch.float32)


def test_from_pretrained_of_a_post_ln_checkpoint_returns_loading_info(tmp_path):
    stock_checkpoint(tmp_path)
    model, info = BertPreLNForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert (type(model), list(info["missing_keys"])) == (BertPreLNForMaskedLM, [])


def test_unknown_placement_or_initializer_raises(tmp_path):
    stock_checkpoint(tmp_path)
    for make in (BertPreLNConfig, lambda **kwargs: BertPreLNModel.from_pretrained(tmp_path, **kwargs)):
        with pytest.raises(ValueError, match="norm_placement='sandwich'"):
            make(norm_placement="sandwich")
    with pytest.raises(ValueError, match="initializer='he'"):
        BertPreLNConfig(initializer="he")


@pytest.mark.slow
def test_last_ffn_gradient_shrinks_with_depth_for_pre_ln_only():
    """Xiong et al.: at initialization it is O(1) in the depth L for Post-LN and O(1 / sqrt(L)) for Pre-LN."""
    depths, norms, inputs = (2, 4, 8, 16, 24), {"post": [], "pre": []}, batch(vocab_size=1000, size=(16, 32))
    sizes = {**SMALL, "vocab_size": 1000, "hidden_size": 128, "intermediate_size": 512, "max_position_embeddings": 32}
    for seed in range(5):
        for depth in depths:
            config = BertPreLNConfig(initializer="xavier_uniform", **{**sizes, "num_hidden_layers": depth})
            for model in make_pair(config, seed):
                model(**inputs).loss.backward()
                last = model.bert.encoder.layer[-1].output.dense.weight
                norms[model.config.norm_placement].append(last.grad.norm().item())
    post, pre = (np.polyfit(np.log(depths), np.log(norms[name]).reshape(5, -1).mean(0), 1)[0] for name in norms)
    assert abs(post) < 0.15
    assert -0.65 < pre < -0.38
