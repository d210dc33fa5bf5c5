"""Metrics against scikit-learn and against the counts that define them."""

from itertools import product

import numpy as np
import pytest
import sklearn.metrics

from scripts.text_classification.metrics import F1, Accuracy, Matthews, RocAuc, classification_metrics


LABELS = [1, 0, 1, 1, 0, 0, 1, 0]
PREDICTIONS = [1, 0, 0, 1, 1, 0, 1, 0]  # 3 true positives, 1 false positive, 1 false negative, 3 true negatives
SCORES = [0.9, 0.1, 0.4, 0.7, 0.6, 0.4, 0.8, 0.2]


def random_case(classes, seed=0):
    """Logits and labels of 60 examples; every class occurs on both sides."""
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % classes
    return rng.normal(size=(60, classes)) + 1.5 * np.eye(classes)[labels], labels


@pytest.mark.parametrize(
    ("metric", "key", "predictions", "expected"),
    [
        (Accuracy, "accuracy", PREDICTIONS, 6 / 8),
        (F1, "f1", PREDICTIONS, 2 * 3 / (2 * 3 + 1 + 1)),
        (Matthews, "matthews_correlation", PREDICTIONS, (3 * 3 - 1 * 1) / (4 * 4 * 4 * 4) ** 0.5),
        # Of 16 pairs of a positive and a negative example, 14 are in order, one is not, and one is a tie.
        (RocAuc, "roc_auc", SCORES, 14.5 / 16),
    ],
)
def test_metrics_match_hand_computed_values(metric, key, predictions, expected):
    if metric is RocAuc:
        of = {label: [s for s, actual in zip(SCORES, LABELS, strict=True) if actual == label] for label in (0, 1)}
        assert sum((p > n) + (p == n) / 2 for p, n in product(of[1], of[0])) == 14.5
    result = metric().compute(predictions=predictions, references=LABELS)
    assert result == {key: pytest.approx(expected, abs=1e-12)}
    assert type(result[key]) is float


def test_f1_of_three_classes_is_the_unweighted_mean():
    # True positives 2, 1, 1; false positives 1, 0, 1; false negatives 0, 1, 1.
    expected = (4 / 5 + 2 / 3 + 2 / 4) / 3
    result = F1().compute(predictions=[0, 0, 1, 0, 2, 2], references=[0, 0, 1, 2, 1, 2])
    assert result["f1"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classification_metrics_against_sklearn(classes):
    logits, labels = random_case(classes)
    predicted = logits.argmax(-1)
    average = "binary" if classes == 2 else "macro"
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(labels, predicted),
        "f1": sklearn.metrics.f1_score(labels, predicted, average=average),
        "matthews_correlation": sklearn.metrics.matthews_corrcoef(labels, predicted),
    }
    if classes == 2:
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected["roc_auc"] = sklearn.metrics.roc_auc_score(labels, probabilities[:, 1])
    assert 0.5 < expected["accuracy"] < 1
    assert classification_metrics(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_f1_takes_the_number_of_classes_from_the_logits():
    """The third class is neither present nor predicted: F1 is still the mean over classes, not that of class 1."""
    logits, labels = np.eye(3)[[0, 1, 0, 1]], np.array([0, 1, 1, 1])
    expected = sklearn.metrics.f1_score(labels, [0, 1, 0, 1], average="macro")
    assert classification_metrics(logits, labels)["f1"] == pytest.approx(expected)


@pytest.mark.parametrize("constant", [0, 1])
def test_classification_metrics_of_a_constant_classifier_are_finite(constant):
    """There is no division by zero and no warning."""
    logits = np.tile(np.eye(2)[constant], (len(LABELS), 1))
    expected = {"accuracy": 0.5, "f1": 2 * 4 / (2 * 4 + 4) * constant, "matthews_correlation": 0.0, "roc_auc": 0.5}
    assert classification_metrics(logits, np.array(LABELS)) == pytest.approx(expected, abs=1e-12)


def test_f1_without_positives_is_0():
    """scikit-learn counts 0 / 0 as 0 with a warning; here there is no warning."""
    assert F1().compute(predictions=[0, 0], references=[0, 0]) == {"f1": 0.0}


def test_accuracy_accepts_batches():
    metric = Accuracy()
    for i in range(0, 8, 3):
        metric.add_batch(predictions=PREDICTIONS[i : i + 3], references=LABELS[i : i + 3])
    assert metric.compute() == {"accuracy": 0.75}
