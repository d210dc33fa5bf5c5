"""The result of the demo on one seed: which configurations need a warmup (Xiong et al. 2020)."""

from __future__ import annotations

import math

import pytest

from compare_layer_norm import CompareArguments, name_of, plan, run_one
from hf_warmup.report import find, read_run


CHANCE = math.log(27)  # the loss of a guess among 27 symbols


@pytest.mark.slow
def test_post_ln_needs_a_warmup_and_pre_ln_does_not(tmp_path):
    jobs = plan(CompareArguments(seeds=[3], output_dir=str(tmp_path)))
    results = {name_of(settings): run_one(settings, tmp_path / name) for name, settings in jobs.items()}
    stuck = results.pop("post:adamw:none")
    assert stuck["final_loss"] == pytest.approx(CHANCE, abs=0.05)
    assert stuck["accuracy"] < 0.1
    assert len(results) == 5
    for name, result in results.items():
        assert result["accuracy"] > 0.95, name
    # Pre-LN needs fewer updates than Post-LN with warmup; 1.49 times fewer were measured.
    assert results["post:adamw:linear"]["steps_to_loss_0.5"] > 1.2 * results["pre:adamw:none"]["steps_to_loss_0.5"]

    def ratio_at_20(name):
        steps, ratios = read_run(tmp_path / f"{name}-seed3").ratio()
        return ratios[steps.index(20)]

    assert ratio_at_20("post-adamw-none") > 30
    assert ratio_at_20("post-adamw-linear") < 15
    assert ratio_at_20("pre-adamw-none") < 3

    # The findings tell the failed run from the others.
    stalled = {name for name in jobs if any(finding.is_problem for finding in find(read_run(tmp_path / name)))}
    assert stalled == {"post-adamw-none-seed3"}
