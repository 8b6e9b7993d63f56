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


@pytest.mark.parametrize(("most_epochs", "status", "short"), [(MOST_EPOCHS, 0, "none"), (1, 1, "diabetes")])
def test_exit_status_and_last_line_tell_what_falls_short(monkeypatch, capsys, most_epochs, status, short):
    monkeypatch.setattr(linear_models, "TASKS", (diabetes,))
    monkeypatch.setattr(linear_models, "MOST_EPOCHS", most_epochs)
    assert linear_models.main() == status
    assert f"short of scikit-learn: {short}." in capsys.readouterr().out
