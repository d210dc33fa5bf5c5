"""Layer names of real models, gradient norms against torch's, and the recorder's file."""

import errno
import json
import re
from math import inf, nan

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_warmup.modeling_bert_pre_ln import BertPreLNConfig, BertPreLNForMaskedLM, BertPreLNModel
from hf_warmup.norms import (
    GRADIENT_NORMS_FILE,
    GradientNormRecorder,
    find_stacks,
    gradient_norms,
    group_names,
    growing_stacks,
    layer_names,
    read_gradient_norms,
    record_gradient_norms,
)
from hf_warmup.report import read_run
from hf_warmup.report.findings import records_of

from .testing_utils import TINY


GPT2 = GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0)
BART = {f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
BART = BartConfig(vocab_size=20, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=8, **BART)
T5 = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
DISTIL = DistilBertConfig(vocab_size=20, dim=8, n_layers=2, n_heads=2, hidden_dim=8)
DISTIL_BLOCKS = ["transformer.layer.0", "transformer.layer.1"]
BLOCKS = ["encoder.layer.0", "encoder.layer.1"]


def both(parts):
    return [f"{side}.{part}" for side in ("encoder", "decoder") for part in parts]


MODELS = [
    (BertModel, BertConfig(**TINY), ["embeddings", *BLOCKS, "pooler"]),
    (BertForMaskedLM, BertConfig(**TINY), ["embeddings", *BLOCKS, "cls"]),
    (BertForSequenceClassification, BertConfig(**TINY), ["embeddings", *BLOCKS, "pooler", "classifier"]),
    (BertPreLNForMaskedLM, BertPreLNConfig(**TINY), ["embeddings", *BLOCKS, "encoder.LayerNorm", "cls"]),
    (BertPreLNModel, BertPreLNConfig(**TINY), ["embeddings", *BLOCKS, "encoder.LayerNorm", "pooler"]),
    (RobertaForMaskedLM, RobertaConfig(**TINY), ["embeddings", *BLOCKS, "lm_head"]),
    (RobertaForSequenceClassification, RobertaConfig(**TINY), ["embeddings", *BLOCKS, "classifier"]),
    (DistilBertForSequenceClassification, DISTIL, ["embeddings", *DISTIL_BLOCKS, "pre_classifier", "classifier"]),
    (GPT2Model, GPT2, ["wte", "wpe", "h.0", "h.1", "ln_f"]),
    (GPT2LMHeadModel, GPT2, ["wte", "wpe", "h.0", "h.1", "ln_f"]),
    (LlamaForCausalLM, LlamaConfig(**TINY), ["embed_tokens", "layers.0", "layers.1", "norm", "lm_head"]),
    (T5ForConditionalGeneration, T5, ["shared", *both(["block.0", "block.1", "final_layer_norm"])]),
    (BartForConditionalGeneration, BART, ["shared", *both(["embed_positions", "layers.0", "layernorm_embedding"])]),
]
GROUPINGS = {  # a transcription for BertForSequenceClassification
    "layer": lambda name: re.match(r"(bert\.)?(encoder\.layer\.\d+|embeddings|pooler|classifier)\.", name)[2],
    "module": lambda name: name.rsplit(".", 1)[0],
    "parameter": lambda name: name,
    lambda name: name[-4:]: lambda name: name[-4:],
}
# Sums of up to 2000 squares in float32, in another order than torch's norm.
close = {"rtol": 2e-6, "atol": 0}


def named_model(cls=BertForSequenceClassification, seed=0):
    """A model and random gradients whose size differs between parameters."""
    torch.manual_seed(seed)
    model = cls(BertConfig(**TINY))
    for i, p in enumerate(model.parameters()):
        p.grad = torch.randn_like(p) * (1 + i)
    return model


def parameters(**grads):
    """Named parameters with these gradients (lists, tensors, or None)."""
    named = []
    for name, grad in grads.items():
        grad = torch.tensor([1.0]) if grad is None else torch.as_tensor(grad)
        p = torch.nn.Parameter(torch.zeros_like(grad))
        p.grad = None if grads[name] is None else grad
        named.append((name, p))
    return named


def recorded(recorder, steps, size=1.0):
    """Record a gradient of norm `size * step` for each wanted step and flush."""
    for step in filter(recorder.should_record, steps):
        recorder.record(parameters(a=[3.0 * step * size / 5, 4.0 * step * size / 5]), step)
    return recorder.flush()


def lines(path):
    """The file's objects by a strict reader: NaN and Infinity are no JSON."""

    def refuse(constant):
        raise AssertionError(constant)

    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@pytest.mark.parametrize(("cls", "config", "expected"), MODELS, ids=lambda value: getattr(value, "__name__", ""))
def test_layer_names_of_real_models(cls, config, expected):
    names = [name for name, _ in cls(config).named_parameters()]
    layers = layer_names(names)
    assert list(layers) == names
    assert list(dict.fromkeys(layers.values())) == expected
    assert all(layer in name for name, layer in layers.items())


@pytest.mark.parametrize("cls", [BertForSequenceClassification, BertModel])
@pytest.mark.parametrize(
    "prefix",
    [
        "module._orig_mod.",
        "_fsdp_wrapped_module.",
        "base_model.model.",  # PEFT
        "model.",  # the attribute of a LightningModule
        "_forward_module.module.model.",  # the same by Fabric with DDP
        "module.model.base_model.model.",
        "0.auto_model.",  # sentence-transformers
    ],
)
def test_layer_names_do_not_contain_the_prefixes_of_wrappers(prefix, cls):
    names = [name for name, _ in cls(BertConfig(**TINY)).named_parameters()]
    wrapped = [prefix + name.replace("attention.self.", "attention._checkpoint_wrapped_module.self.") for name in names]
    assert list(layer_names(wrapped).values()) == list(layer_names(names).values())


@pytest.mark.parametrize(
    ("cls", "config", "targets"),
    [
        (BertForSequenceClassification, BertConfig(**TINY), ["query"]),
        (LlamaForCausalLM, LlamaConfig(**TINY), ["q_proj"]),
    ],
    ids=["BERT", "Llama"],
)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft uses the former name
def test_layer_names_of_lora_are_those_of_the_model(cls, config, targets):
    peft = pytest.importorskip("peft")
    model = cls(config)
    layers = list(dict.fromkeys(layer_names(name for name, _ in model.named_parameters()).values()))
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, modules_to_save=["classifier"]))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    by_name = layer_names(name for name, _ in adapted.named_parameters())
    assert list(dict.fromkeys(by_name.values())) == layers
    assert {by_name[name] for name in trained} >= {layer for layer in layers if layer[-1].isdigit()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
@pytest.mark.parametrize("group_by", ["module", "parameter"])
def test_group_names_do_not_contain_the_prefixes_of_wrappers(prefix, group_by):
    assert (
        group_names([f"{prefix}a.b.weight"], group_by)[f"{prefix}a.b.weight"]
        == group_names(["a.b.weight"], group_by)["a.b.weight"]
    )


@pytest.mark.parametrize(
    ("block", "attention", "mlp"),
    [
        ("h.0.", ["attn.c_attn.bias"], ["mlp.c_fc.weight"]),  # GPT-2
        ("encoder.layer.0.", ["attention.output.dense.bias"], ["intermediate.dense.bias", "output.dense.bias"]),  # BERT
        ("encoder.block.0.", ["layer.0.SelfAttention.q.weight"], ["layer.1.DenseReluDense.wi.weight"]),  # T5
        ("decoder.layers.0.", ["encoder_attn.q_proj.bias"], ["fc1.weight", "fc2.weight"]),  # BART
        ("layers.0.", ["self_attn.q_proj.weight"], ["block_sparse_moe.experts.0.w1.weight"]),  # Mixtral
    ],
)
def test_group_names_by_attention_and_mlp(block, attention, mlp):
    others = ["ln_1.weight", "post_attention_layernorm.weight"]
    names = [block + name for name in (*attention, *mlp, *others)] + ["pooler.dense.weight"]
    layer = block[:-1]
    for word, chosen in (("attention", attention), ("mlp", mlp)):
        expected = [f"{layer}.{word}" if name in chosen else layer for name in (*attention, *mlp, *others)]
        assert list(group_names(names, word).values()) == [*expected, "pooler"]


def stacks_of(cls, config):
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in cls(config).named_parameters()}
    stacks = find_stacks(dict.fromkeys(layer_names(shapes).values()), growing_stacks(shapes))
    return {prefix: len(stack) for prefix, stack in stacks.items()}


def test_find_stacks_of_encoder_and_decoder_and_not_of_growing_stages():
    assert stacks_of(BertForMaskedLM, BertConfig(**TINY)) == {"encoder.layer": 2}
    # The first block of T5 alone has relative position biases: it is equal in what both have.
    assert stacks_of(T5ForConditionalGeneration, T5) == {"encoder.block": 2, "decoder.block": 2}
    stages = ConvNextConfig(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1])
    assert stacks_of(ConvNextForImageClassification, stages) == {}


def test_the_recording_of_any_loop_notes_growing_stacks_for_the_report(tmp_path):
    model = torch.nn.ModuleDict({"stages": torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4))})
    recorder = GradientNormRecorder(tmp_path / GRADIENT_NORMS_FILE)
    for step in (1, 2):
        model["stages"](torch.ones(4)).sum().backward()
        recorder.record(model.named_parameters(), step)
    recorder.flush()
    assert ["growing_stacks" in row for row in read_gradient_norms(tmp_path)] == [True, False]
    assert records_of(read_run(tmp_path)).stacks == {}


def test_find_stacks_orders_blocks_by_number():
    layers = [f"layers.{i}" for i in (10, 2, 1)]
    assert find_stacks([*layers, "norm", "head.0"]) == {"layers": ["layers.1", "layers.2", "layers.10"]}


@pytest.mark.parametrize(("group_by", "transcription"), GROUPINGS.items(), ids=["layer", "module", "parameter", "own"])
def test_gradient_norms_equal_torchs(group_by, transcription):
    model = named_model()
    squares = {}
    for name, p in model.named_parameters():
        group = transcription(name)
        squares[group] = squares.get(group, 0.0) + p.grad.double().norm() ** 2
    norms = gradient_norms(model.named_parameters(), group_by)
    assert list(norms) == list(squares)
    for group, square in squares.items():
        assert norms[group].shape == ()
        torch.testing.assert_close(norms[group].double(), square.sqrt(), **close)

    recorder = GradientNormRecorder(None, group_by)
    recorder.record(model.named_parameters(), step=1)
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    assert recorder.flush()[0]["grad_norm"] == pytest.approx(total, rel=2e-6)  # of the gradient before clipping


def test_gradient_norms_without_some_gradients():
    model = named_model()
    complete = gradient_norms(model.named_parameters())
    for p in model.bert.encoder.layer[0].parameters():
        p.grad = None
    without = gradient_norms(model.named_parameters())
    assert list(without) == [layer for layer in complete if layer != "encoder.layer.0"]
    assert all(torch.equal(without[layer], complete[layer]) for layer in without)
    assert gradient_norms(parameters(**{"a.weight": [3.0, 4.0], "a.bias": None}), "module") == {"a": 5.0}
    assert gradient_norms(parameters(a=None)) == gradient_norms([]) == {}


@pytest.mark.parametrize("share_with_clip", [True, False])
@pytest.mark.parametrize(
    ("gradient", "norm"),
    [
        (torch.ones(1000, dtype=torch.bfloat16), 1000**0.5),  # 31.625 in bfloat16
        (torch.full((10_000,), 1e3, dtype=torch.float16), 1e5),  # infinite in float16
        (torch.full((100,), 1e30, dtype=torch.float64), 1e31),  # its square is infinite in float32
    ],
    ids=["bfloat16", "float16", "float64"],
)
def test_gradient_norms_of_other_dtypes_do_not_overflow(gradient, norm, share_with_clip):
    recorder = GradientNormRecorder(None, "parameter", share_with_clip=share_with_clip)
    recorder.record(parameters(a=gradient, b=gradient, c=[1.0]), step=1)
    (row,) = recorder.flush()
    # Adding 10,000 squares one after another in float32 loses 5e-6.
    assert [row["grad_norm/a"], row["grad_norm/b"]] == pytest.approx([norm, norm], rel=1e-5)


@pytest.mark.parametrize("make", [lambda: GradientNormRecorder(None, "layers"), lambda: gradient_norms([], "layers")])
def test_unknown_group_by_raises(make):
    with pytest.raises(ValueError, match=r"group_by='layers' is unknown.*Did you mean 'layer'"):
        make()


@pytest.mark.parametrize("scale", [64.0, torch.tensor(64.0)])
def test_record_divides_by_the_loss_scale(scale):
    recorder = GradientNormRecorder(None)
    recorder.record(parameters(a=[3.0 * 64, 4.0 * 64], b=[12.0 * 64]), step=1, scale=scale)
    assert recorder.flush() == [{"step": 1, "grad_norm": 13.0, "grad_norm/a": 5.0, "grad_norm/b": 12.0}]


def test_record_of_norms_that_are_not_finite(tmp_path):
    recorder = GradientNormRecorder(tmp_path / GRADIENT_NORMS_FILE)
    recorder.record(parameters(a=[1.0, inf], b=[nan], c=[3.0, 4.0]), step=1)
    recorder.log(loss=torch.tensor(nan), learning_rate=inf)
    recorder.record(parameters(a=[0.0], b=[0.0], c=[0.0]), step=2)
    first = {"step": 1, "grad_norm": None, "grad_norm/a": None, "grad_norm/b": None, "grad_norm/c": 5.0}
    first |= {"loss": None, "learning_rate": None, "nonfinite": ["a", "b"]}
    second = {"step": 2, "grad_norm": 0.0, "grad_norm/a": 0.0, "grad_norm/b": 0.0, "grad_norm/c": 0.0}
    assert recorder.flush() == [first, second] == lines(recorder.path)
    assert recorder.nonfinite_updates == 1
    resumed = GradientNormRecorder(recorder.path)
    resumed.resume(1)
    assert resumed.nonfinite_updates == 1


def test_record_of_groups_that_come_and_go():
    recorder = GradientNormRecorder(None)
    for step, grads in enumerate([{"a": [1.0], "b": None}, {"a": [1.0], "b": [1.0]}, {"c": [1.0]}, {"c": None}], 1):
        recorder.record(parameters(**grads), step)
    keys = [set(row) - {"step", "grad_norm"} for row in recorder.flush()]
    assert keys == [{"grad_norm/a"}, {"grad_norm/a", "grad_norm/b"}, {"grad_norm/c"}, set()]


@pytest.mark.parametrize("step", ["x", None, 1.5, 0, -3, True])
def test_record_of_a_step_that_is_no_whole_number_from_1_raises(step):
    with pytest.raises(ValueError, match=rf"^step={step!r}: expected an integer in \[1, inf\)"):
        GradientNormRecorder(None).record(parameters(a=[1.0]), step)


def test_record_takes_numpy_steps(tmp_path):
    recorder = GradientNormRecorder(tmp_path / GRADIENT_NORMS_FILE)
    recorder.record(parameters(a=[1.0]), np.int64(3))
    recorder.flush()
    assert lines(recorder.path)[0]["step"] == 3


def test_record_of_the_same_update_replaces_its_norms():
    # as in a loop that accumulates gradients by hand
    recorder = GradientNormRecorder(None)
    for step, size in [(1, 1.0), (1, 2.0), (2, 3.0), (2, 4.0)]:
        recorder.record(parameters(a=[size]), step)
    assert [(row["step"], row["grad_norm"]) for row in recorder.flush()] == [(1, 2.0), (2, 4.0)]


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 4, 7]), (10, [1])])
def test_should_record_every_nth_update(every, steps):
    recorder = GradientNormRecorder(None, every=every)
    assert [row["step"] for row in recorded(recorder, range(1, 8))] == steps


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_every_that_is_no_whole_number_from_1_raises(every):
    with pytest.raises(ValueError, match=f"every={every!r}"):
        GradientNormRecorder(None, every=every)


def test_flush_writes_returns_and_empties(tmp_path):
    recorder = GradientNormRecorder(tmp_path / "new" / "folder" / GRADIENT_NORMS_FILE)
    assert recorder.flush() == []
    assert not recorder.path.exists()
    first = recorded(recorder, [1, 2])
    assert recorder.latest == first[-1]
    second = recorded(recorder, [3])
    assert [(row["step"], row["grad_norm/a"]) for row in first + second] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert recorder.flush() == []
    assert first + second == lines(recorder.path) == read_gradient_norms(recorder.path.parent)


def test_record_flushes_after_30_seconds_and_after_1000_updates(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    recorder = GradientNormRecorder(tmp_path / GRADIENT_NORMS_FILE)
    for step in (1, 2):
        recorder.record(parameters(a=[1.0]), step)
    now = 30.0
    recorder.record(parameters(a=[2.0]), 2)  # not yet: the update is measured again
    assert not recorder.path.exists()
    recorder.log(loss=0.5)
    recorder.record(parameters(a=[1.0]), 3)
    assert [(row["step"], row["grad_norm"], row.get("loss")) for row in lines(recorder.path)] == [
        (1, 1.0, None),
        (2, 2.0, 0.5),
    ]
    for step in range(4, 1004):
        recorder.record(parameters(a=[1.0]), step)
    assert len(lines(recorder.path)) == 1002


def test_log_adds_values_to_the_row_of_the_last_update(tmp_path):
    recorder = GradientNormRecorder(tmp_path / GRADIENT_NORMS_FILE, every=2)
    recorder.log(loss=9.0)  # before anything was recorded
    recorder.record(parameters(a=[1.0]), 1)
    recorder.log(loss=torch.tensor([0.25, 0.75], requires_grad=True), learning_rate=[0.1, 0.1])
    recorder.log(loss=7.0)  # of update 2, which is not recorded
    recorder.flush()
    recorder.record(parameters(a=[1.0]), 3)
    recorder.flush()
    recorder.log(learning_rate=[0.1, 0.2])  # after the row was written
    recorder.flush()
    row = {"grad_norm": 1.0, "grad_norm/a": 1.0}
    expected = [{"step": 1, **row, "loss": 0.5, "learning_rate": pytest.approx(0.1)}]
    expected += [{"step": 3, **row, "learning_rate": [0.1, 0.2]}]
    assert read_gradient_norms(recorder.path) == expected
    assert recorder.latest == expected[-1]


@pytest.mark.parametrize("step", [0, 4, 6, 9])
def test_resume_leaves_no_gap_and_no_duplicate(step, tmp_path):
    path = tmp_path / GRADIENT_NORMS_FILE
    recorded(GradientNormRecorder(path), range(1, 7))
    with path.open("a") as file:
        file.write('{"step": 7, "grad_no')  # killed while writing
    assert [row["step"] for row in read_gradient_norms(path)] == [1, 2, 3, 4, 5, 6]
    resumed = GradientNormRecorder(path)
    resumed.record(parameters(a=[7.0]), step=7)  # of the time before the checkpoint was loaded
    resumed.resume(step)
    recorded(resumed, range(step + 1, 11), size=2.0)
    expected = [(n, float(n)) for n in range(1, min(step, 6) + 1)] + [(n, 2.0 * n) for n in range(step + 1, 11)]
    assert [(row["step"], pytest.approx(row["grad_norm"])) for row in lines(path)] == expected
    assert [file.name for file in tmp_path.iterdir()] == [GRADIENT_NORMS_FILE]


@pytest.mark.parametrize(
    ("steps", "every", "lacks"),
    [
        ([3, 4, 5], 1, "updates 1 to 2,"),
        ([1, 2, 5], 1, "updates 3 to 4,"),
        ([1, 2], 1, "updates 3 to 5,"),
        ([1, 4], 3, ""),
    ],
)
def test_resume_warns_of_updates_that_the_recording_lacks(tmp_path, caplog, steps, every, lacks):
    path = tmp_path / GRADIENT_NORMS_FILE
    recorded(GradientNormRecorder(path), steps)
    GradientNormRecorder(path, every=every).resume(5)
    assert (f"{GRADIENT_NORMS_FILE} lacks {lacks} which the checkpoint has made." in caplog.text) == bool(lacks)
    assert bool(caplog.text) == bool(lacks)


def test_read_and_resume_skip_lines_that_hold_no_row(tmp_path, caplog):
    path = tmp_path / GRADIENT_NORMS_FILE
    good = [f'{{"step": {step}, "grad_norm": 1.0}}' for step in (1, 2, 3)]
    path.write_text("\n".join([good[0], "[]", "null", "\0" * 32, good[1], "{}", good[2]]) + "\n")
    assert [row["step"] for row in read_gradient_norms(path)] == [1, 2, 3]
    assert "skipped 4 lines" in caplog.text
    GradientNormRecorder(path).resume(2)
    assert [row["step"] for row in read_gradient_norms(path)] == [1, 2]


def test_resume_without_a_file(tmp_path):
    for path in (None, tmp_path / GRADIENT_NORMS_FILE):
        recorder = GradientNormRecorder(path)
        recorder.resume(3)
        assert recorder.flush() == []
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    recorder = GradientNormRecorder(tmp_path / "file" / GRADIENT_NORMS_FILE)
    recorder.resume(0)
    for step in (1, 2):
        assert [row["step"] for row in recorded(recorder, [step])] == [step]
    assert caplog.text.count("cannot be written") == 1


def test_a_full_disk_raises(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hf_warmup.norms.recorder.append_rows", full)
    with pytest.raises(OSError, match="No space left"):
        recorded(GradientNormRecorder(tmp_path / GRADIENT_NORMS_FILE), [1])


def test_one_copy_to_the_host_per_flush(monkeypatch):
    calls = []
    for name in ("tolist", "cpu", "item", "numpy", "__float__", "__bool__", "__int__", "__array__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, _name=name, _original=original, **kwargs):
            calls.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    recorder, model = GradientNormRecorder(None), named_model()
    for step in (1, 2, 3):
        recorder.record(model.named_parameters(), step, scale=torch.tensor(2.0))
        recorder.log(loss=torch.tensor(1.0))
    assert calls == []
    assert len(recorder.flush()) == 3
    assert calls == ["tolist"]


def test_record_sends_the_groups_to_the_device_once_and_fetches_nothing(monkeypatch):
    model, recorder = named_model().to("meta"), GradientNormRecorder(None)  # a device without values
    sent, tensor = [], torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *args, **kwargs: sent.append(kwargs) or tensor(*args, **kwargs))
    for step in range(1, 6):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        recorder.record(model.named_parameters(), step, scale=torch.ones((), device="meta"))
    assert sent == [{"device": torch.device("meta")}]


def test_record_gradient_norms_of_a_loop_that_accumulates_by_hand(tmp_path):
    torch.manual_seed(0)
    accelerator, recorder = Accelerator(cpu=True), GradientNormRecorder(tmp_path / GRADIENT_NORMS_FILE)
    model = torch.nn.Linear(2, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    expected = []
    for update in (1, 2):
        for _ in range(3):
            with record_gradient_norms(recorder, accelerator, model, update):
                accelerator.backward(model(torch.randn(3, 2)).square().sum())
        expected.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
        optimizer.step()
        optimizer.zero_grad()
    recorder.flush()
    assert [row["grad_norm"] for row in lines(recorder.path)] == pytest.approx(expected, rel=1e-6)
