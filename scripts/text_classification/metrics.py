"""Classification metrics as importable `evaluate.Metric` classes, computed by scikit-learn.

`evaluate.load("accuracy")` downloads a script from the Hub; these classes work offline.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, roc_auc_score
from transformers import EvalPrediction


class _SklearnMetric(evaluate.Metric):
    """Base class of metrics of class ids, or of scores of the positive class."""

    key: str
    of_scores = False
    score: Any  # a function of the labels and the predictions

    def __init__(self, **kwargs: Any):
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        predictions = datasets.Value("float32" if self.of_scores else "int64")
        features = {"predictions": predictions, "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=self.__doc__ or "", citation="", features=datasets.Features(features), inputs_description=""
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {self.key: float(self.score(np.asarray(references), np.asarray(predictions)))}


class Accuracy(_SklearnMetric):
    """Accuracy: the share of correct labels, in [0, 1].

    Example:

    ```python
    >>> Accuracy().compute(predictions=[1, 0, 1, 1], references=[1, 0, 0, 1])
    {'accuracy': 0.75}

    ```
    """

    key = "accuracy"
    score = staticmethod(accuracy_score)


class F1(_SklearnMetric):
    """F1 of class 1 for two classes, or the unweighted mean over classes for more, in [0, 1].

    Args:
        num_classes (`int`, *optional*): Number of classes; by default the largest label plus 1.

    Example:

    ```python
    >>> F1().compute(predictions=[1, 0, 1, 1], references=[1, 0, 0, 1])
    {'f1': 0.8}

    ```
    """

    key = "f1"

    def __init__(self, num_classes: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_classes = num_classes

    def score(self, references: np.ndarray, predictions: np.ndarray) -> float:
        classes = self.num_classes or max(references.max(), predictions.max()) + 1
        return f1_score(references, predictions, average="binary" if classes <= 2 else "macro", zero_division=0.0)


class Matthews(_SklearnMetric):
    """Matthews correlation, in [-1, 1]; 0 for a classifier that always predicts the same class.

    Example:

    ```python
    >>> round(Matthews().compute(predictions=[1, 0, 1, 1], references=[1, 0, 0, 1])["matthews_correlation"], 4)
    0.5774

    ```
    """

    key = "matthews_correlation"
    score = staticmethod(matthews_corrcoef)


class RocAuc(_SklearnMetric):
    """Area under the ROC curve for two classes, in [0, 1]; `predictions` are scores of class 1.

    It is 0.5 for random scores, and NaN if only one class occurs.

    Example:

    ```python
    >>> RocAuc().compute(predictions=[0.1, 0.4, 0.35, 0.8], references=[0, 0, 1, 1])
    {'roc_auc': 0.75}

    ```
    """

    key = "roc_auc"
    of_scores = True

    def score(self, references: np.ndarray, predictions: np.ndarray) -> float:
        return roc_auc_score(references, predictions) if len(np.unique(references)) == 2 else float("nan")


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return all metrics that apply to the number of classes.

    Args:
        logits (`np.ndarray`): Shape `(examples, classes)`.
        labels (`np.ndarray`): Class ids, shape `(examples,)`.

    Example:

    ```python
    >>> logits = np.array([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    >>> classification_metrics(logits, np.array([0, 1, 1]))["accuracy"]
    0.6666666666666666

    ```
    """
    predicted = logits.argmax(-1)
    results: dict[str, float] = {}
    for metric in (Accuracy(), F1(num_classes=logits.shape[-1]), Matthews()):
        results.update(metric.compute(predictions=predicted, references=labels))
    if logits.shape[-1] == 2:
        results.update(RocAuc().compute(predictions=logits[:, 1] - logits[:, 0], references=labels))
    return results


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return [`classification_metrics`] for the `compute_metrics` argument of a Trainer."""
    return classification_metrics(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))
