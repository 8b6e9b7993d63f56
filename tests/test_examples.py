"""The example programs: what they say of themselves is true."""

from pathlib import Path

import numpy as np
import pytest

import refloss
from examples import linear_models, matching
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


def test_the_picture_of_a_matching_is_the_one_in_the_documentation(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["matching", "--out", str(tmp_path / "matching.svg")])
    matching.main()
    result = matching.losses()
    assert result.intermediates["assignment"].tolist() == [[0, 0, 0], [0, 1, 1], [0, 2, 2]]
    picture = (tmp_path / "matching.svg").read_text()
    shown = Path("docs/img/matching.svg").read_text()
    for query, number in ((0, 0), (1, 1), (2, 2)):
        cost = f"{result.intermediates['cost_matrix'][query, number]:.2f}"
        assert cost.lstrip("-") in picture
        assert cost.lstrip("-") in shown


def test_a_small_step_along_the_arrows_fits_better():
    result = matching.losses()
    labels = [{"class_labels": np.arange(3), "boxes": matching.TARGETS}]
    moved = matching.BOXES - 1e-3 * result.grads["pred_boxes"][0]
    after = refloss.object_detection(matching.LOGITS[None], labels, moved[None], matching.CONFIG)
    for name in ("loss_bbox", "loss_giou"):
        assert after.components[name] < result.components[name]
