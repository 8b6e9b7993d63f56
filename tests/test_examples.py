"""The example program: what it says of itself is true."""

import numpy as np
import pytest

from examples import linear_models
from examples.linear_models import MARGIN, MOST_EPOCHS, TASKS, compare, diabetes, digits, properties

# Well above guessing, so that two broken models cannot pass for two equal ones.
LEAST_SCORE = {digits: 0.95, properties: 0.7, diabetes: 0.3}


@pytest.mark.parametrize("make", TASKS, ids=lambda make: make.__name__)
def test_refloss_and_scikit_learn_arrive_at_one_model(make):
    task = make()
    outcome = compare(task)
    assert outcome.ours == pytest.approx(outcome.theirs, abs=MARGIN)
    assert outcome.ours > LEAST_SCORE[make]
    assert outcome.fit.epochs < MOST_EPOCHS
    fitted = getattr(task.estimator, "estimators_", [task.estimator])
    theirs = np.vstack([part.coef_ for part in fitted])
    np.testing.assert_allclose(outcome.fit.weights.T, theirs, rtol=0, atol=5e-3 * np.abs(theirs).max())


def test_the_table_names_the_task_and_nothing_falls_short(monkeypatch, capsys):
    monkeypatch.setattr(linear_models, "TASKS", (diabetes,))
    assert linear_models.main() == 0
    printed = capsys.readouterr().out
    assert "diabetes" in printed
    assert "short of scikit-learn: none." in printed


def test_training_that_stops_too_early_falls_short(monkeypatch, capsys):
    monkeypatch.setattr(linear_models, "MOST_EPOCHS", 1)
    assert linear_models.main() == 1
    assert "short of scikit-learn: digits, digit properties, diabetes." in capsys.readouterr().out
