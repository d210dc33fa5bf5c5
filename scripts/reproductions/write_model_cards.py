"""Write `model_cards/` from the runs in `runs/`: the demo's, those of SST-2, and the reproductions.

python scripts/compare_layer_norm.py
python -m scripts.reproductions depth      # and the other figures
python -m scripts.reproductions.write_model_cards
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hf_warmup.model_card import Experiment, experiment_card
from hf_warmup.report import Run, draw_comparison, read_run


ROOT = Path(__file__).parent.parent
CARDS = ROOT / "model_cards"

DEMO = Experiment(
    title="Post-LN and Pre-LN BERT on sequence reversal, with and without warmup",
    question=(
        "Does a Post-LN BERT need a warmup, and does a Pre-LN one not? A 6-layer BERT (width 64) learns to reverse 16 "
        "random tokens at learning rate 2e-3, the same batches and the same initial values in every arm. Post-LN "
        "without a warmup stays at the loss of a guess, ln 27 = 3.296, on every seed; with a linear or a constant "
        "warmup of 100 updates, with RAdam, and as Pre-LN without any warmup it is solved on every seed (Xiong et al. "
        "2020, https://arxiv.org/abs/2002.04745)."
    ),
    command="make demo",
    task=("fill-mask", "sequence-reversal"),
    limits=(
        "A task made to separate the conditions in seconds, one learning rate, one depth. At 5e-4 Post-LN learns "
        "without a warmup too. The last/first-layer ratio is of whole layers, not of one matrix as in the paper."
    ),
)

SST2_COMMAND = """\
# One arm, one seed; the table says what each arm adds in place of the dots.
python scripts/finetune_bert.py --tokenizer_name bert-base-uncased --task_name sst2 \\
    --train_file SST-2/train.tsv --validation_file SST-2/dev.tsv --do_train --do_eval \\
    --num_hidden_layers 6 --hidden_size 128 --num_attention_heads 4 --intermediate_size 512 \\
    --max_seq_length 64 --pad_to_max_length false --per_device_train_batch_size 64 --max_steps 450 \\
    --weight_decay 0.01 --lr_scheduler_type linear --logging_steps 10 --eval_strategy steps --eval_steps 75 \\
    --save_strategy no --report_to tensorboard --seed 0 --output_dir runs/sst2/ARM-seed0 ..."""


SST2 = Experiment(
    title="A small BERT from scratch on SST-2, Post-LN and Pre-LN, with and without warmup",
    question=(
        "Is it the same on real text? A 6-layer BERT (width 128) is trained from scratch on the complete GLUE SST-2 "
        "for 450 updates of 64 sentences (less than half an epoch); accuracy on the 872 sentences of the development "
        "set, of which 0.509 are of one class. At learning rate 2e-3 Post-LN without a warmup ends at that majority "
        "class on every seed. A linear warmup of 200 updates gets it to learn, but not always to stay: 2e-3 is at the "
        "edge for Post-LN, and one of three seeds falls back once the warmup is over. RAdam without any warmup, and "
        "Pre-LN in every arm, learn on every seed. At 1e-3 nobody needs a warmup; at 3e-3 only RAdam still trains "
        "Post-LN."
    ),
    command=SST2_COMMAND,
    task=("text-classification", "glue"),
    limits=(
        "From scratch, without pretraining, in half an epoch: 0.80 is what such a model reaches, a pretrained BERT "
        "well above 0.9. One schedule (linear decay to 0), one warmup length. Post-LN with the linear warmup at 2e-3 "
        "depends on the seed: transformers' own Trainer with `--warmup_steps 200`, whose warmup is one update later, "
        "gave 0.795 on seed 0, where this warmup gave 0.509 (with transformers' own names WarmupTrainer has the "
        "Trainer's losses, bit for bit). Arms at 1e-3 and 3e-3 have two seeds, 0 and 1. The figures "
        "are of 2e-3."
    ),
    commit="e9dff26",
)


def draw(name: str, runs: list[Run]) -> dict[str, str]:
    """The figures of an experiment, in the cards' folder; path from the card -> caption."""
    folder = CARDS / "images" / name
    folder.mkdir(parents=True, exist_ok=True)
    draw_comparison(runs, folder)
    captions = {
        "loss.png": "Training loss, one line a seed",
        "gradient_norms.png": "Gradient norm of each layer before clipping, first seed",
        "gradient_norm_ratio.png": "Gradient norm of the last layer over the first's",
    }
    (folder / "learning_rate.png").unlink()
    return {f"images/{name}/{file}": caption for file, caption in captions.items()}


def write_demo() -> Path:
    folder = ROOT / "runs" / "compare_layer_norm"
    results = json.loads((folder / "results.json").read_text())
    runs = [
        read_run(folder / f"{r['norm_placement']}-{r['optim']}-{r['warmup_type']}-seed{r['seed']}") for r in results
    ]
    table: dict[str, dict[str, list[float]]] = {"accuracy": {}, "loss": {}, "updates to loss 0.5": {}}
    keys = {"accuracy": "accuracy", "loss": "final_loss", "updates to loss 0.5": "steps_to_loss_0.5"}
    for run, result in zip(runs, results, strict=True):
        for metric, key in keys.items():
            if result[key] is not None:
                table[metric].setdefault(run.stem, []).append(result[key])
    DEMO.figures = draw("compare_layer_norm", runs)
    shutil.copytree(CARDS / "images" / "compare_layer_norm", ROOT / "docs" / "images", dirs_exist_ok=True)
    experiment_card(DEMO, table, runs).save(CARDS / "compare_layer_norm.md")
    return CARDS / "compare_layer_norm.md"


def write_sst2() -> Path:
    # By learning rate; in each the arm that fails first, as in the demo's figures.
    folders = sorted(
        (ROOT / "runs" / "sst2").glob("*-seed*"),
        key=lambda path: (
            path.name.partition("-lr")[2].partition("-seed")[0],
            path.name.startswith("pre"),
            "-radam-" in path.name,
            "-none-" not in path.name,
            path.name,
        ),
    )
    runs = [read_run(folder) for folder in folders if (folder / "eval_results.json").exists()]
    table: dict[str, dict[str, list[float]]] = {"accuracy": {}, "roc_auc": {}, "loss": {}}
    settings = {}
    for run in runs:
        evaluated = json.loads((run.folder / "eval_results.json").read_text())
        for metric, values in table.items():
            values.setdefault(run.stem, []).append(evaluated[f"eval_{metric}"])
        placement, optim, warmup_type, rate = run.stem.split("-", 3)
        steps = " --warmup_steps 200" if warmup_type == "linear" else ""
        settings[run.stem] = (
            f"--norm_placement {placement} --optim {optim} --warmup_type {warmup_type}{steps} "
            f"--learning_rate {rate.removeprefix('lr')}"
        )
    at_2e3 = [run for run in runs if run.stem.endswith("lr2e-3")]
    SST2.figures, SST2.settings = draw("sst2", at_2e3), settings
    experiment_card(SST2, table, runs).save(CARDS / "sst2_from_scratch.md")
    return CARDS / "sst2_from_scratch.md"


def copy_reproduction(folder: Path) -> Path:
    """The card that `reproduce.py` wrote into `folder`, with its figures among the others'."""
    text, images = (folder / "README.md").read_text(), f"images/reproduce_{folder.name}"
    (CARDS / images).mkdir(parents=True, exist_ok=True)
    for figure in folder.glob("*.png"):
        shutil.copy(figure, CARDS / images)
        text = text.replace(f"]({figure.name})", f"]({images}/{figure.name})")
    card = CARDS / f"reproduce_{folder.name}.md"
    card.write_text(text)
    return card


if __name__ == "__main__":
    print(write_demo())
    print(write_sst2())
    for card in sorted((ROOT / "runs" / "reproduce").glob("*/README.md")):
        print(copy_reproduction(card.parent))
