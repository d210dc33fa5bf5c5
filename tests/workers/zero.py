"""One process under DeepSpeed: the tiny run at each ZeRO stage, as Trainer and as Accelerate loop.

DS_ACCELERATOR=cpu torchrun --standalone --nproc_per_node 1 tests/workers/zero.py results.json
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import AcceleratorState, GradientState

from tests.workers.runs import GLOBAL_BATCH, make_trainer, run_loop, run_trainer


def configuration(stage: int, accumulation: int) -> dict[str, Any]:
    return {
        "zero_optimization": {"stage": stage},
        "train_micro_batch_size_per_gpu": GLOBAL_BATCH // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.1,
        "zero_allow_untested_optimizer": True,
    }


def as_trainer(stage: int, accumulation: int) -> dict[str, Any]:
    more = {"use_cpu": False, "deepspeed": configuration(stage, accumulation)}
    return run_trainer(make_trainer(GLOBAL_BATCH // accumulation, accumulation, **more))


def as_loop(stage: int, accumulation: int) -> dict[str, Any]:
    plugin = DeepSpeedPlugin(hf_ds_config=configuration(stage, accumulation))
    accelerator = Accelerator(deepspeed_plugin=plugin, gradient_accumulation_steps=accumulation)
    return run_loop(accelerator, GLOBAL_BATCH // accumulation)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = {}
    for engine, stage, accumulation in itertools.product((as_trainer, as_loop), (0, 1, 2, 3), (1, 4)):
        GradientState._reset_state()
        AcceleratorState._reset_state()
        results[f"{engine.__name__}/{stage}/{accumulation}"] = engine(stage, accumulation)
    Path(sys.argv[1]).write_text(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
