"""The public names of [`hf_warmup.norms`][] under their documented path."""

from .norms import GradientNormRecorder, gradient_norms, layer_names, read_gradient_norms, record_gradient_norms


__all__ = ["GradientNormRecorder", "gradient_norms", "layer_names", "read_gradient_norms", "record_gradient_norms"]
