"""One process of a run that is resumed with another number of processes.

torchrun --nproc_per_node 2 tests/workers/elastic.py FOLDER UPDATES
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

from hf_warmup import WarmupTrainer
from tests.testing_utils import arguments, examples, tiny_bert, train


if __name__ == "__main__":
    args = arguments(sys.argv[1], max_steps=int(sys.argv[2]), save_strategy="steps", save_steps=4)
    train(WarmupTrainer(tiny_bert(), args, train_dataset=examples()), resume_from_checkpoint="auto")
    sys.stderr.flush()
    os._exit(0)  # gloo's threads abort now and then at the end of the interpreter
