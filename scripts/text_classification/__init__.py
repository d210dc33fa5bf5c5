"""Data, metrics and arguments that the two fine-tuning scripts share."""
