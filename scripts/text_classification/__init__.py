"""Data, metrics and arguments that the fine-tuning scripts share."""
