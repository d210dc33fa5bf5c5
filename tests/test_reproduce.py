"""The reproductions: their pieces, and (slow) each of them at its smallest size."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
import time
from importlib import import_module
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import BertTokenizerFast

from hf_warmup import BertPreLNConfig, BertPreLNForMaskedLM
from scripts.reproductions import auto, rules, translation

from .testing_utils import WORDS, tiny_bert


SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def reproduce(script, tmp_path):
    """Run `python -m scripts.reproductions flags` in this process; return `results.json`, and stdout or stderr."""

    def call(what: str, *flags: object, rc: int = 0) -> tuple[dict, str]:
        out, err = script("reproductions", what, *flags, "--output_dir", tmp_path, rc=rc)
        if rc:
            return {}, err
        assert (tmp_path / what / "figure.png").stat().st_size > 10_000
        results = json.loads((tmp_path / what / "results.json").read_text())
        assert {"torch", "transformers", "machine", "threads"} <= results["environment"].keys()
        assert len(results["verdicts"]) == out.count("=>  ") >= 2
        card = ModelCard.load(tmp_path / what / "README.md")
        assert card.data.eval_results
        assert card.text.count("](") == len(list((tmp_path / what).glob("*.png")))
        for verdict in results["verdicts"]:
            assert f"| {verdict['measured']} | {verdict['verdict']} |" in card.text
            assert verdict.keys() == {"claim", "source", "measured", "holds", "verdict"}
            assert verdict["claim"] in out
        return results, out

    return call


def holds(results: dict) -> list[bool | None]:
    return [verdict["holds"] for verdict in results["verdicts"]]


def test_untuned_measures_the_lengths_of_the_formulas(reproduce):
    results, out = reproduce("untuned", "--quick", "--max_steps", 1500)
    assert holds(results) == [True, True, True]
    lengths = results["numbers"]["effective_lengths"]
    # Sums of the formulas: the sum of 1 - t / 2000 for t = 1 to 1999 is 999.5.
    assert lengths["0.999"]["untuned linear"] == pytest.approx(999.5)
    assert lengths["0.99"]["untuned exponential"] == pytest.approx(1 / (2.718281828459045**0.01 - 1))
    assert "1033" in out


def test_variance_falls_as_measured_with_more_trajectories(reproduce):
    results, _ = reproduce("variance", "--quick")
    assert holds(results) == [None, True, True]  # 6000 updates are not quick
    adam = results["numbers"]["Adam"]
    # With 5000 trajectories: 7.45e-2 and 5.2e-3; with 1000 within a fifth of that.
    assert adam["10"] == pytest.approx(7.45e-2, rel=0.2)
    assert adam["100"] == pytest.approx(5.2e-3, rel=0.2)


def test_exact_variance_is_the_integral():
    from scripts.reproductions.variance import exact_variance, first_order_variance

    for rho in (6.0, 20.0):
        # x = rho / chi2: E[x] - E[sqrt(x)]^2 with chi2's density, by a fine sum.
        y = torch.linspace(1e-4, 200, 2_000_000, dtype=torch.float64)
        half = torch.tensor(rho / 2, dtype=torch.float64)
        density = torch.exp((half - 1) * y.log() - y / 2 - torch.lgamma(half)) / 2**half
        first, second = (torch.trapezoid(density * (rho / y) ** power, y).item() for power in (0.5, 1.0))
        assert exact_variance(rho) == pytest.approx(second - first**2, rel=1e-3)
    assert first_order_variance(1000.0) == pytest.approx(exact_variance(1000.0), rel=0.01)


@pytest.mark.slow
def test_depth_at_its_smallest_size(reproduce):
    results, _ = reproduce("depth", "--quick", "--seeds", 3)
    exponents = results["numbers"]["exponents"]
    # One seed instead of five: tolerances twice as wide still separate 0 and -1/2.
    assert abs(exponents["Xavier"]["post"][0]) < 0.3
    assert -0.85 < exponents["Xavier"]["pre"][0] < -0.3
    assert abs(exponents["transformers', embedding LayerNorm"]["pre"][0]) < 0.15
    assert holds(results) == [None] * 4


@pytest.mark.slow
def test_profile_at_its_smallest_size(reproduce):
    results, _ = reproduce("profile", "--quick", "--max_steps", 2)
    assert holds(results)[-1] is None
    norms = results["numbers"]["norms"]
    assert {kind: sorted(placements) for kind, placements in norms.items()} == {
        "encoder": ["post", "pre"],
        "decoder": ["post", "pre"],
    }
    assert all(len(row) == 6 for pairs in norms["decoder"].values() for pair in pairs for row in pair)


@pytest.mark.slow
def test_warmup_does_not_repeat_finished_runs(reproduce, tmp_path):
    flags = ("--quick", "--max_steps", 2, "--num_workers", 1)
    results, _ = reproduce("warmup", *flags)
    assert [run["norm_placement"] for run in results["numbers"]] == ["post", "post", "post", "pre"]
    assert {run["steps_to_loss_0.5"] for run in results["numbers"]} == {None}  # two updates are not enough
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("warmup/runs/*/result.json")}
    assert len(written) == 4
    assert reproduce("warmup", *flags)[0]["numbers"] == results["numbers"]
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_auto_verdicts_compare_with_the_best_fixed_warmup():
    updates = {
        (1e-3, "none"): [100, 110],
        (1e-3, "linear 100"): [140, 150],
        (1e-3, "auto"): [100, 110],
        (2e-3, "none"): [None, None],
        (2e-3, "linear 100"): [150, 160],
        (2e-3, "untuned"): [100, 100],
        (2e-3, "auto"): [200, 220],
        (4e-3, "linear 100"): [150, 160],
        (4e-3, "auto"): [200, None],
    }
    results = [
        auto.settings_of(("post", "adamw", lr), column, 400, seed) | {"steps_to_loss_0.5": steps}
        for (lr, column), both in updates.items()
        for seed, steps in enumerate(both)
    ]
    assert auto.free(results).holds is True
    assert auto.succeeds(results).holds is False
    assert auto.succeeds(results).measured.endswith("not Post-LN adamw at 0.004")
    slower = auto.in_time(results)  # 210 against 100 updates
    assert (slower.holds, slower.measured) == (False, "at most 2.10 times, Post-LN adamw at 0.002")
    assert [verdict.holds for verdict in (auto.free([]), auto.succeeds([]), auto.in_time([]))] == [None] * 3
    assert auto.settings_of(("post", "sgdm", 0.05), "RAdam", 400, 0) is None


@pytest.mark.parametrize("name", [path.stem for path in (SCRIPTS / "reproductions").glob("[a-z]*.py")])
def test_docstring_examples_of_reproductions(name):
    assert doctest.testmod(import_module(f"scripts.reproductions.{name}")).failed == 0


def test_rules_label_every_finished_run_by_its_own_result(tmp_path):
    results = {
        "auto/runs/solved": ({"steps_to_loss_0.5": 90}, "reversal learned"),
        "auto/runs/unsolved": ({"steps_to_loss_0.5": None, "rewinds": 0}, "reversal failed"),
        "auto/runs/rewound": ({"steps_to_loss_0.5": 90, "rewinds": 1}, None),
        "pretrained/runs/learned": ({"task": "MR", "roc_auc": 0.6}, "text learned"),
        "finetune/finetuned/failed": ({"task": "SST-2", "roc_auc": 0.59}, "text failed"),
        "pretrained/runs/too_hard": ({"task": "RTE", "roc_auc": 0.5}, None),
        "pretrained/runs/may_rewind": ({"task": "MR", "roc_auc": 0.9, "guard": "rewind"}, None),
        "translation/runs/failed": ({"bleu": 49.9}, "translation failed"),
        "pretrain/runs/masked": ({"evaluations": []}, None),
    }
    for name, (result, _) in results.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    (tmp_path / "auto" / "runs" / "unfinished").mkdir()
    assert rules.labelled_runs(tmp_path) == {tmp_path / name: kind for name, (_, kind) in results.items() if kind}


def test_verdicts_of_warmup_follow_from_results():
    from scripts.reproductions.warmup import BAND, CLAIMS, faster, judge, wider

    def runs(placement, warmup, updates, lr=2e-3):
        same = {"norm_placement": placement, "optim": "adamw", "warmup_type": warmup, "learning_rate": lr}
        return [{**same, "steps_to_loss_0.5": each} for each in updates]

    papers = runs("post", "none", [None, None]) + runs("post", "linear", [150, 160]) + runs("pre", "none", [100, 106])
    assert judge(CLAIMS[0], papers).holds is True
    assert judge(CLAIMS[0], runs("post", "none", [None, 99]) + papers).holds is False
    assert judge(CLAIMS[1], papers).holds is None  # no run of SGD
    assert faster(papers).holds is True
    assert faster(runs("pre", "none", [150]) + runs("post", "linear", [160])).holds is False
    band = [run for lr in BAND[:1] for run in runs("post", "none", [200], lr)]
    band += [run for lr in BAND[:4] for run in runs("post", "linear", [200], lr)]
    assert wider(band).holds is True  # 5e-3 over 5e-4
    assert "10 times" in wider(band).measured
    assert wider(papers).holds is None


@pytest.mark.slow
def test_optimizers_at_its_smallest_size(reproduce):
    results, out = reproduce("optimizers", "--quick", "--max_steps", 2, "--num_workers", 1)
    assert results["numbers"]["learning_rates"].keys() == {"SGD, momentum", "AdamW", "RAdam"}
    assert len(results["numbers"]["runs"]) == 6
    assert "0/1" in out


def test_training_arguments_are_valid_for_every_optimizer_of_the_table(tmp_path):
    from scripts.reproductions.optimizers import ROWS, warmups_of
    from scripts.reproductions.reversal import job, training_arguments

    for row in ROWS.values():
        for warmup in warmups_of(row):
            args = training_arguments(job("post", row.optim, warmup, 1e-3, 300, 0, row.optim_args), tmp_path)
            assert args.optim.value == row.optim


@pytest.fixture
def texts(tmp_path):
    """A data folder with a few words in each file."""
    folder = tmp_path / "data"
    (folder / "bert-base-uncased").mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "bert-base-uncased" / "vocab.txt").write_text("\n".join(words))
    for name in ("us_speeches/us_speeches.txt", "wikitext-2/valid.txt", "wikitext-2/test.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("\n".join(" ".join(WORDS) + " <unk>" for _ in range(60)))
    (folder / "mr").mkdir()
    (folder / "mr" / "rt-polarity.pos").write_text("a good film\na good good film\n" * 20)
    (folder / "mr" / "rt-polarity.neg").write_text("a bad film\na bad bad film\n" * 20)
    for task, header in (("SST-2", "sentence\tlabel"), ("RTE", "index\tsentence1\tsentence2\tlabel")):
        (folder / "glue" / task).mkdir(parents=True)
        row = "a good film\t{}" if task == "SST-2" else "0\ta good film\ta film\t{}"
        for split in ("train", "dev"):
            rows = "\n".join(row.format(i % 2) for i in range(8))
            (folder / "glue" / task / f"{split}.tsv").write_text(f"{header}\n{rows}\n")
    return folder


@pytest.mark.slow
def test_pretrain_and_finetune_at_their_smallest_size(reproduce, texts, tmp_path):
    flags = ("--quick", "--max_steps", 2, "--num_workers", 1, "--data_dir", texts)
    results, _ = reproduce("pretrain", *flags)
    pretrained, finetuned = results["numbers"].values()
    assert [[step for step, _ in run["evaluations"]] for run in pretrained] == [[1, 2]] * 3
    assert {(run["norm_placement"], run["task"]) for run in finetuned} == {
        (placement, task) for placement in ("post", "pre") for task in ("SST-2", "RTE")
    }
    assert holds(results) == [None, None]

    result = tmp_path / "pretrain" / "pretrained" / "post-linear-lr0.001-seed0" / "result.json"
    written = result.stat().st_mtime_ns
    results, _ = reproduce("finetune", *flags)
    assert result.stat().st_mtime_ns == written  # uses the checkpoints of `pretrain`
    assert [run["warmup_type"] for run in results["numbers"]] == ["none", "linear", "none"]
    assert all(0 <= run["roc_auc"] <= 1 for run in results["numbers"])
    assert holds(results) == [None, None]


@pytest.mark.slow
def test_scratch_at_its_smallest_size(reproduce, texts):
    results, _ = reproduce("scratch", "--quick", "--max_steps", 2, "--num_workers", 1, "--data_dir", texts)
    assert [run["norm_placement"] for run in results["numbers"]] == ["post"] * 5 + ["pre"]
    assert {run["majority"] for run in results["numbers"]} == {0.5}
    assert holds(results) == [None] * 9


@pytest.mark.slow
def test_translation_at_its_smallest_size(reproduce):
    pytest.importorskip("sacrebleu", reason="the extra `translation` is not installed")
    results, _ = reproduce("translation", "--quick", "--max_steps", 4, "--num_workers", 1)
    assert [run["name"] for run in results["numbers"]] == [*translation.CONFIGURATIONS]
    for run in results["numbers"]:
        assert [step for step, *_ in run["evaluations"]] == [1, 2, 3, 4]
        assert min(norm for evaluation in run["evaluations"] for norm in evaluation[4:]) > 0
        assert run["initial_growth"] == results["numbers"][0]["initial_growth"]  # the same initial values
    assert holds(results) == [None] * 6


@pytest.mark.parametrize(
    ("number", "english", "german"),
    [
        (1, "one", "ein"),
        (20, "twenty", "zwanzig"),
        (115, "one hundred fifteen", "ein hundert fünfzehn"),
        (99_000, "ninety nine thousand", "neun und neunzig tausend"),
        (
            777_777,
            "seven hundred seventy seven thousand seven hundred seventy seven",
            "sieben hundert sieben und siebzig tausend sieben hundert sieben und siebzig",
        ),
    ],
)
def test_translation_example_is_a_number_in_both_languages(number, english, german):
    row = translation.example(number)
    assert {len(values) for values in row.values()} == {translation.LENGTH}
    source, target = (np.array(row[key]) for key in ("input_ids", "labels"))
    assert (translation.text(source), translation.text(np.maximum(target, 0))) == (english, german)
    assert sum(row["attention_mask"]) == len(english.split()) + 1


def test_translation_metrics_compare_words_up_to_the_end():
    pytest.importorskip("sacrebleu", reason="the extra `translation` is not installed")
    labels = np.array([translation.example(number)["labels"] for number in (234_567, 98_765)])
    generated = np.pad(np.maximum(labels, 0), ((0, 0), (1, 3)))  # begins with the token that starts the decoder
    perfect = translation.compute_metrics(SimpleNamespace(predictions=generated, label_ids=labels))
    assert perfect == {"bleu": pytest.approx(100), "accuracy": 1.0}
    generated[0, 1] = translation.IDS["neun"]
    measured = translation.compute_metrics(SimpleNamespace(predictions=generated[:, :12], label_ids=labels))
    assert 0 < measured["bleu"] < 100
    assert measured["accuracy"] == pytest.approx(1 - (1 + (labels[:, 11:] != -100).sum()) / (labels != -100).sum())


def test_verdicts_of_translation_follow_from_results():
    """Without warmup only the smallest learning rate works; RAdam is ten points of BLEU lower."""
    results = {}
    for lr, seed, name in product(translation.RATES, range(3), translation.CONFIGURATIONS):
        fails = name == translation.PLAIN and lr > translation.RATES[0]
        bleu = 5.0 if fails else 86.0 if name == translation.RADAM else 96.0
        run = {"name": name, "learning_rate": lr, "seed": seed, "bleu": bleu, "max_steps": translation.STEPS}
        results[f"{name}-{lr}-{seed}"] = {**run, "initial_growth": [0.9, 3.0]}
    failed = {name for name, run in results.items() if run["bleu"] == 5.0}
    judged = translation.verdicts(results, failed)
    assert [verdict.holds for verdict in judged] == [True, False, True, True, True, True]
    assert judged[3].measured == "0.001 without and 0.006 with, of 0.001, 0.003, 0.006"
    short = {name: {**run, "max_steps": 10} for name, run in results.items()}
    assert [verdict.holds for verdict in translation.verdicts(short, failed)] == [None] * 6


@pytest.mark.slow
def test_pretrained_at_its_smallest_size(reproduce, texts, tmp_path, monkeypatch):
    from scripts.reproductions import pretrained

    tiny_bert(vocab_size=15, max_position_embeddings=48).save_pretrained(tmp_path / "model")
    BertTokenizerFast.from_pretrained(texts / "bert-base-uncased").save_pretrained(tmp_path / "model")
    monkeypatch.setattr(pretrained, "checkpoint_folder", lambda: tmp_path / "model")
    results, out = reproduce("pretrained", "--quick", "--max_steps", 10, "--num_workers", 1, "--data_dir", texts)
    assert {run["name"] for run in results["numbers"]} == pretrained.CONFIGURATIONS.keys()
    assert {run["norm_placement"] for run in results["numbers"]} == {"post", "pre"}
    assert [step for step, *_ in results["numbers"][0]["evaluations"]] == [2, 4, 6, 8, 10]
    assert holds(results) == [None] * 5
    assert "MR, no warmup, lr 0.0002" in out


def test_verdicts_of_pretrained_follow_from_results():
    """Without warmup 2e-3 fails and curves are rough; with warmup it works and the curves are smooth."""
    from scripts.reproductions.pretrained import verdicts, working_rates

    results = []
    for task in ("MR", "SST-2"):
        for lr in (3e-5, 2e-4, 6e-4, 2e-3):
            for name in ("no warmup", "linear warmup"):
                fails = name == "no warmup" and lr == 2e-3
                areas = [0.5, 0.7, 0.6, 0.8] if name == "no warmup" else [0.5, 0.6, 0.7, 0.8]
                last = 0.5 if fails else 0.85 + (0.004 if name == "linear warmup" else 0.0)
                curve = [
                    [10 * i, 0.5, last + (0.02 if i == 2 and name == "no warmup" else 0), a]
                    for i, a in enumerate(areas)
                ]
                curve[-1][2] = last
                same = {"task": task, "learning_rate": lr, "name": name, "accuracy": last, "roc_auc": last}
                results += [{**same, "evaluations": curve, "seed": seed} for seed in range(3)]
    assert working_rates(results, "MR", "no warmup") == [3e-5, 2e-4, 6e-4]
    folders = {str(i): run for i, run in enumerate(results)}
    failed = {name for name, run in folders.items() if run["accuracy"] == 0.5}
    assert [each.holds for each in verdicts(results, folders, failed)] == [True] * 5
    assert [each.holds for each in verdicts(results, folders, set())][-1] is False  # failed runs without a finding
    assert [each.holds for each in verdicts(results[::3], folders, set())] == [None] * 5  # one seed


def test_run_all_repeats_runs_with_other_settings_only(tmp_path):
    from scripts.reproductions.kept_runs import run_all

    def run_one(settings, folder):
        seen.append(sorted(path.name for path in folder.iterdir()))
        (folder / "checkpoint-1").mkdir(exist_ok=True)
        if settings.get("fails"):
            raise RuntimeError("cut short")
        return {"twice": 2 * settings["lr"]}

    seen = []
    for lr, fails, rest in (
        (1, False, ["settings.json"]),
        (1, False, None),  # not run again
        (2, True, ["settings.json"]),  # the checkpoint of other settings is removed
        (2, True, ["checkpoint-1", "settings.json"]),  # the run's own checkpoint is kept
    ):
        before = len(seen)
        settings = {"lr": lr, **({"fails": True} if fails else {})}
        if fails:
            with pytest.raises(RuntimeError, match="cut short"):
                run_all(run_one, {tmp_path / "a": settings}, tmp_path, 1)
        else:
            assert run_all(run_one, {tmp_path / "a": settings}, tmp_path, 1) == [{"lr": 1, "twice": 2}]
        assert seen[before:] == ([] if rest is None else [rest])


@pytest.mark.multiprocess
def test_workers_exit_with_their_parent(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.workers.slow_runs", tmp_path], cwd=SCRIPTS.parent, stderr=subprocess.DEVNULL
    )

    def wait_until(condition):
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.1)

    files = [tmp_path / name / "pid" for name in "ab"]
    wait_until(lambda: all(path.exists() and path.read_text() for path in files))
    pids = [int(path.read_text()) for path in files]
    assert all(map(psutil.pid_exists, pids))
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(psutil.pid_exists, pids)))


def test_loss_at_masks_equals_the_loss_of_bert():
    from scripts.reproductions.training import LossAtMasks

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertPreLNConfig(vocab_size=50, **small)
    whole, at_masks = BertPreLNForMaskedLM(config).eval(), LossAtMasks(config).eval()
    at_masks.load_state_dict(whole.state_dict())
    ids = torch.randint(5, 50, (3, 16), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(16) % 4 > 0, -100)
    expected, found = (model(input_ids=ids, labels=labels).loss for model in (whole, at_masks))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_sequences_have_special_tokens_and_a_fixed_length(texts):
    from scripts.reproductions.texts import LENGTH, sequences

    tokenizer = BertTokenizerFast.from_pretrained(texts / "bert-base-uncased")
    training, held_out = sequences(texts, tokenizer)
    assert training.shape[1] == held_out.shape[1] == LENGTH
    assert len(training) + len(held_out) == 3 * 60 * 11 // (LENGTH - 2)  # ten words and an unknown one a line
    for pieces in (training, held_out):
        assert (pieces[:, 0] == tokenizer.cls_token_id).all()
        assert (pieces[:, -1] == tokenizer.sep_token_id).all()
    share = (training[:, 1:-1] == tokenizer.unk_token_id).float().mean().item()
    assert share == pytest.approx(1 / 11, abs=0.01)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("dept",), "invalid choice: 'dept' (choose from"),
        (("untuned", "--max_steps", -1), "max_steps=-1: expected an integer in [0, inf)"),
        (("warmup", "--seeds", -1), "seeds=-1: expected an integer in [0, inf)"),
        (
            ("pretrain", "--data_dir", "nowhere"),
            "data_dir='nowhere' has no file bert-base-uncased/vocab.txt, which `pretrain` reads.",
        ),
        (("pretrain",), "`pretrain` needs a folder with the files bert-base-uncased/vocab.txt, us_speeches"),
        (("depth", "--quickly"), "--quickly is not an argument. Did you mean --quick?"),
    ],
    ids=lambda value: "",
)
def test_reproductions_exit_with_one_error(reproduce, monkeypatch, flags, sentence):
    monkeypatch.delenv("HF_WARMUP_DATA", raising=False)
    _, err = reproduce(*flags, rc=2)
    assert err.count("error: ") == 1
    assert sentence in err
