"""`python -m hf_warmup.model_card`: the command of [`hf_warmup.report.model_card`][] under its documented path."""

from .report.model_card import Experiment, experiment_card, main, results_of
from .report.run import environment


__all__ = ["Experiment", "environment", "experiment_card", "main", "results_of"]


if __name__ == "__main__":
    main()
