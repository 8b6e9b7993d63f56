"""Linear models trained with refloss's gradients alone, held against scikit-learn's own estimators.

    python examples/linear_models.py

Each task is a linear model with an intercept and an L2 penalty. scikit-learn fits it its own way; here NumPy descends
along the gradient that refloss.sequence_classification returns. Both minimise the same function, so both should score
the same on data that neither has seen; the exit status is 1 if refloss falls short. Needs scikit-learn, which brings
the data.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

import refloss

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# How far a score may fall short of scikit-learn's: less than two of the 450 held-out digits.
MARGIN = 0.004
# The gradient's norm has fallen to this part of its first value.
TOLERANCE = 1e-5
MOST_EPOCHS = 5000
SEED = 0
# What a digit is. Each is a label of the multi-label task.
PROPERTIES = {
    "even": {0, 2, 4, 6, 8},
    "with a loop": {0, 6, 8, 9},
    "greater than four": {5, 6, 7, 8, 9},
    "prime": {2, 3, 5, 7},
}


class Task(NamedTuple):
    """Data split in two, scikit-learn's estimator, and what gradient descent needs to minimise the same function."""

    name: str
    measure: str
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"]
    outputs: int
    train: tuple[Array, NDArray[Any]]
    held_out: tuple[Array, NDArray[Any]]
    estimator: Any
    penalty: float  # l of mean loss + l/2·‖W‖²; the intercept is free
    curvature: float  # no second derivative of the mean loss by an example's logits exceeds this over n
    decide: Callable[[Array], NDArray[Any]]  # from logits to predictions
    score: Callable[..., float]


class Fit(NamedTuple):
    """A linear model, and how many epochs it took."""

    weights: Array  # [features, outputs]
    intercept: Array  # [outputs]
    epochs: int

    def logits(self, features: Array) -> Array:
        """What the model says of examples."""
        return features @ self.weights + self.intercept


class Outcome(NamedTuple):
    """A row of the table."""

    name: str
    measure: str
    theirs: float
    ours: float
    fit: Fit
    seconds: float

    def matches(self) -> bool:
        """Whether refloss's gradients led to a score as good as scikit-learn's."""
        return self.ours >= self.theirs - MARGIN


def split(features: Array, labels: NDArray[Any], strata: NDArray[Any] | None) -> list[Any]:
    """Training and held-out features, standardised by the training ones, then training and held-out labels."""
    seen, unseen, *parts = train_test_split(features, labels, stratify=strata, random_state=SEED)
    scaler = StandardScaler().fit(seen)
    return [scaler.transform(seen), scaler.transform(unseen), *parts]


def digits() -> Task:
    """Ten classes. scikit-learn minimises C·Σ loss + ½‖W‖², with C = 1."""
    features, digit = load_digits(return_X_y=True)
    seen, unseen, labels, unseen_labels = split(features, digit, digit)
    return Task(
        name="digits",
        measure="accuracy",
        problem_type="single_label_classification",
        outputs=10,
        train=(seen, labels),
        held_out=(unseen, unseen_labels),
        estimator=LogisticRegression(tol=1e-6, max_iter=1000),
        penalty=1 / len(seen),
        curvature=1 / 2,
        decide=lambda logits: logits.argmax(axis=1),
        score=accuracy_score,
    )


def properties() -> Task:
    """Several labels for each digit: a mean over examples and labels, so that each label has 1/K of the penalty."""
    features, digit = load_digits(return_X_y=True)
    has = np.stack([np.isin(digit, list(digits)) for digits in PROPERTIES.values()], axis=1).astype(np.float64)
    seen, unseen, labels, unseen_labels = split(features, has, digit)
    return Task(
        name="digit properties",
        measure="exact match",
        problem_type="multi_label_classification",
        outputs=len(PROPERTIES),
        train=(seen, labels),
        held_out=(unseen, unseen_labels),
        estimator=OneVsRestClassifier(LogisticRegression(tol=1e-6, max_iter=1000)),
        penalty=1 / labels.size,
        curvature=1 / (4 * len(PROPERTIES)),
        decide=lambda logits: (logits > 0).astype(np.float64),
        score=accuracy_score,
    )


def diabetes() -> Task:
    """One number. scikit-learn minimises Σ (x − t)² + α‖W‖², with α = 1."""
    features, progression = load_diabetes(return_X_y=True)
    seen, unseen, labels, unseen_labels = split(features, progression, None)
    return Task(
        name="diabetes",
        measure="R²",
        problem_type="regression",
        outputs=1,
        train=(seen, labels),
        held_out=(unseen, unseen_labels),
        estimator=Ridge(alpha=1.0),
        penalty=2 / len(seen),
        curvature=2.0,
        decide=lambda logits: logits[:, 0],
        score=r2_score,
    )


TASKS: tuple[Callable[[], Task], ...] = (digits, properties, diabetes)


def descend(task: Task) -> Fit:
    """Full-batch gradient descent with Nesterov's momentum; step and momentum follow from curvature and penalty."""
    features, labels = task.train
    inputs = np.column_stack([features, np.ones(len(features))])
    penalty = np.full((inputs.shape[1], 1), task.penalty)
    penalty[-1] = 0.0
    steepest = task.curvature * np.linalg.norm(inputs, 2) ** 2 / len(inputs) + task.penalty
    root = np.sqrt(task.penalty / steepest)
    momentum = (1 - root) / (1 + root)
    weights = ahead = np.zeros((inputs.shape[1], task.outputs))
    epoch, first, size = 0, 0.0, np.inf
    while epoch < MOST_EPOCHS and size > TOLERANCE * first:
        epoch += 1
        result = refloss.sequence_classification(
            labels, inputs @ ahead, num_labels=task.outputs, problem_type=task.problem_type
        )
        gradient = inputs.T @ result.grads["pooled_logits"] + penalty * ahead
        size = float(np.linalg.norm(gradient))
        first = first or size
        before, weights = weights, ahead - gradient / steepest
        ahead = weights + momentum * (weights - before)
    return Fit(weights[:-1], weights[-1], epoch)


def compare(task: Task) -> Outcome:
    """Fit the task both ways and score both on what neither has seen."""
    features, labels = task.held_out
    task.estimator.fit(*task.train)
    theirs = task.score(labels, task.estimator.predict(features))
    start = time.perf_counter()
    fit = descend(task)
    seconds = time.perf_counter() - start
    ours = task.score(labels, task.decide(fit.logits(features)))
    return Outcome(task.name, task.measure, theirs, ours, fit, seconds)


def main() -> int:
    """Run every task and print the table; 1 if one falls short."""
    outcomes = [compare(task()) for task in TASKS]
    table = Table(title="Score on held-out data", title_justify="left")
    for number, column in enumerate(("task", "measure", "scikit-learn", "refloss", "epochs", "seconds")):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    for name, measure, theirs, ours, fit, seconds in outcomes:
        table.add_row(name, measure, f"{theirs:.4f}", f"{ours:.4f}", str(fit.epochs), f"{seconds:.2f}")
    console = Console()
    console.print(table)
    short = [outcome.name for outcome in outcomes if not outcome.matches()]
    console.print(f"More than {MARGIN} short of scikit-learn: {', '.join(short) or 'none'}.")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
