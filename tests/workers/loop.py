"""An Accelerate loop as users write it: `loop.py OUTPUT_DIR`, started by `torchrun` in one or several processes."""

from __future__ import annotations

import os
import sys

import torch
from accelerate import Accelerator

from hf_warmup import GradientNormRecorder, create_optimizer, create_scheduler, record_gradient_norms
from hf_warmup.optim import effective_learning_rates
from tests.testing_utils import examples, tiny_bert


if __name__ == "__main__":
    accelerator, model = Accelerator(), tiny_bert()
    optimizer = create_optimizer(model, "adamw", learning_rate=1e-2)
    loader = torch.utils.data.DataLoader(examples(64), batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    scheduler = create_scheduler(optimizer, "linear", 4, len(loader), warmup_type="linear")
    recorder = GradientNormRecorder(f"{sys.argv[1]}/gradient_norms.jsonl" if accelerator.is_main_process else None)
    for step, batch in enumerate(loader, 1):
        loss = model(**batch).loss
        with record_gradient_norms(recorder, accelerator, model, step):
            accelerator.backward(loss)
        optimizer.step()
        recorder.log(loss=loss, learning_rate=effective_learning_rates(optimizer))
        scheduler.step()
        optimizer.zero_grad()
    recorder.flush()
    sys.stdout.flush()
    os._exit(0)  # gloo may abort while the interpreter ends
