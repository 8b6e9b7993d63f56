"""Pocket TTS: flow matching with self-distillation, and where speech ends."""

from types import SimpleNamespace

import gmpy2
import mpmath
import numpy as np
import pytest
from safetensors.numpy import save_file

import refloss
from refloss.golden import corpus
from refloss.heads.pocket_tts import DISTILLATION
from refloss.kernels.flow import run as launch
from tests import flow_truth
from tests.gauntlet.flow import PocketTts
from tests.gauntlet.kernels import with_steps
from tests.gauntlet.survey import first_name, judgement
from tests.mpfr import flow
from tests.mpfr.measure import KINDS, measured
from tests.mpfr.rounding import PRECISION
from tests.questions import questions
from tests.test_cli import run  # noqa: F401
from tests.test_mpfr_truth import assert_equal
from tests.test_same_bits import bits, layouts

CASES = {case.id.removeprefix("pocket_tts-"): case for case in corpus.cases_of("pocket_tts")}
STEP = CASES["float32"].inputs


def compute(inputs=STEP, **keywords):
    return refloss.pocket_tts(**inputs, **keywords)


def changed(**inputs):
    return {name: np.asarray(value, np.float32) if name in STEP else value for name, value in (STEP | inputs).items()}


def without_distillation(inputs=STEP):
    return {name: value for name, value in inputs.items() if name not in DISTILLATION}


@pytest.mark.parametrize("kind", KINDS["pocket_tts"])
def test_adversarial_inputs_are_rounded_once(kind):
    for tally in measured("pocket_tts", kind, 3000, seed=1):
        found = f"{tally.name} in {tally.format}: {tally.wrong} of {tally.size}, {tally.worst} ulp, {tally.example}"
        if tally.format != "float64":
            assert tally.wrong == 0, found
        else:
            assert tally.worst <= (1 if tally.name in ("loss", "components") else 2), found


@pytest.mark.parametrize("is_distilled", [False, True])
def test_gradients_are_differences_of_the_definition(is_distilled):
    """The MPFR truth's, of which the above are multiples."""
    inputs = CASES["float64"].inputs if is_distilled else without_distillation(CASES["float64"].inputs)
    with gmpy2.context(precision=PRECISION), mpmath.workprec(PRECISION):
        found = flow.truth(flow.Step(inputs))
        exact = {name: flow_truth.numbers(value) for name, value in inputs.items()}
        assert_equal(found.loss, flow_truth.pocket_tts(exact))
        step = mpmath.mpf(2) ** -100
        for name, slopes in found.grads.items():
            for index in range(0, exact[name].size, 4):
                ends = []
                for sign in (1, -1):
                    moved = exact[name].copy()
                    moved.flat[index] += sign * step
                    ends.append(flow_truth.pocket_tts(exact | {name: moved}))
                assert_equal(slopes[index], (ends[0] - ends[1]) / (2 * step))


def test_a_component_s_cotangent():
    parts = [{"flow_diagonal": 0.75}, {"flow_distill": 1.0}, {"eos": 0.1}]
    whole, found = compute(), [compute(grad_output=part) for part in parts]
    for name, gradient in whole.grads.items():
        total = sum(each.grads[name].astype(np.float64) for each in found)
        np.testing.assert_array_equal(total.astype(np.float32), gradient)
        assert sum(bool(np.any(each.grads[name])) for each in found) == 1
    weighted = 0.75 * whole.components["flow_diagonal"] + whole.components["flow_distill"]
    np.testing.assert_allclose(whole.loss, weighted + 0.1 * whole.components["eos"], rtol=1e-15)


def test_a_step_without_distillation():
    whole, alone = compute(), compute(without_distillation())
    assert alone.components["flow_distill"] == 0.0
    assert alone.components["flow_diagonal"] == whole.components["flow_diagonal"]
    for name, gradient in alone.grads.items():
        np.testing.assert_array_equal(gradient, whole.grads[name])
    assert set(whole.grads) - set(alone.grads) == set(DISTILLATION)


@pytest.mark.parametrize("made", [dict, SimpleNamespace])
def test_a_configuration_says_the_weights_and_arguments_come_before_it(made):
    config = made(
        lsd_diagonal_weight=0.5, lsd_distill_probability=0.125, eos_loss_weight=3.0, flow_loss_num_samples=2, more=1
    )
    found = compute(config=config, eos_loss_weight=2.0)
    parts = found.components
    np.testing.assert_allclose(
        found.loss, 0.5 * parts["flow_diagonal"] + 4.0 * parts["flow_distill"] + 2.0 * parts["eos"], rtol=1e-15
    )
    evaluated = compute(config=config, training=False)
    np.testing.assert_allclose(
        evaluated.loss, 0.5 * parts["flow_diagonal"] + 0.5 * parts["flow_distill"] + 3.0 * parts["eos"], rtol=1e-15
    )
    with pytest.raises(ValueError, match="config has no 'lsd_distill_probability', which this loss reads"):
        compute(config={"lsd_diagonal_weight": 0.5})


def test_threads_and_blocks_do_not_show(monkeypatch):
    threads, seen = refloss.get_num_threads(), set()
    try:
        for count, block in ((1, 1 << 20), (1, 1), (3, 1), (2, 20)):
            refloss.set_num_threads(count)
            monkeypatch.setattr(launch, "BLOCK_ELEMENTS", block)
            seen.add(bits(compute(grad_output=1 / 3)))
    finally:
        refloss.set_num_threads(threads)
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["velocity", "targets", "log_variance", "end_velocity", "start_times", "eos_logits"])
def test_memory_layout_does_not_show(name):
    expected = bits(compute())
    for layout, view in layouts(STEP[name]):
        assert bits(compute(STEP | {name: view})) == expected, layout


def test_numbers_of_rows_may_be_columns():
    rows, columns = compute(), compute(CASES["columns"].inputs)
    assert columns.loss == rows.loss
    for name, gradient in columns.grads.items():
        np.testing.assert_array_equal(gradient.reshape(rows.grads[name].shape), rows.grads[name])


def test_inputs_of_several_formats_have_gradients_of_theirs():
    found = compute(STEP | {"velocity": STEP["velocity"].astype(np.float64)})
    assert (found.grads["velocity"].dtype, found.grads["noise"].dtype) == (np.float64, np.float32)
    assert {gradient.dtype for gradient in compute(grad_dtype="float16").grads.values()} == {np.dtype(np.float16)}
    assert set(compute(grad=["noise", "end_times"]).grads) == {"noise", "end_times"}
    assert compute(grad=False).grads == {}


def test_labels_are_what_is_not_0():
    labels = STEP["eos_labels"]
    for given in (labels.astype(np.int8), labels * 0.5, labels * -3, np.where(labels, np.nan, 0.0)):
        assert compute(STEP | {"eos_labels": given}).loss == compute().loss


def test_where_nothing_is_left_of_a_residual_its_gradient_is_0():
    case = CASES["nothing-left"]
    found = compute(case.inputs, grad_output=case.grad_output)
    assert not np.any(found.grads["velocity"][::2])
    assert np.all(np.any(found.grads["velocity"][1::2], axis=1))
    # The weight of a mean square of 1 is right where w is 0.
    assert found.grads["log_variance"][1] == 0
    cancelled = compute(CASES["draws-that-cancel"].inputs).grads["targets"]
    assert not np.any(cancelled[1:])
    assert np.all(cancelled[0] != 0)


@pytest.mark.parametrize("w", [300.0, 5000.0, -300.0, -5000.0])
def test_weights_beyond_every_range(w):
    """What is 0 stays 0, however much it is multiplied, and a loss of −w is no less."""
    hit = np.tile(STEP["targets"], (2, 1)).astype(np.float64) - STEP["noise"]
    inputs = without_distillation() | {"velocity": hit, "log_variance": np.full(6, w)}
    found = compute(inputs)
    assert found.components["flow_diagonal"] == -w
    assert not np.any(found.grads["velocity"])
    np.testing.assert_array_equal(found.grads["log_variance"], np.full(6, -0.75 / 6))
    far = np.float64(2.0) ** (-np.sign(w) * 400)
    zeros = {name: np.zeros_like(inputs[name], np.float64) for name in ("targets", "noise")}
    inputs |= zeros | {"velocity": np.full_like(hit, far), "log_variance": np.full(6, np.sign(w) * 555.0)}
    with mpmath.workprec(PRECISION):
        expected = mpmath.exp(np.sign(w) * 555) * mpmath.mpf(far) ** 2
        found = compute(inputs)
        slope = mpmath.mpf(0.75) / 6 * 2 * expected / far / 5
        assert np.all(np.abs(found.grads["velocity"].astype(float) / float(slope) - 1) < 1e-15)
        assert abs(found.components["flow_diagonal"] / float(expected - np.sign(w) * 555) - 1) < 1e-15


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["velocity", "log_variance", "jump_velocity_dt", "end_times"])
def test_what_is_not_finite_stays_in_its_row(name, value):
    inputs = changed(**{name: np.array(STEP[name])})
    inputs[name][1] = value
    found, finite = compute(inputs), compute()
    assert not np.isfinite(found.loss)
    for other, gradient in found.grads.items():
        kept = [k for k in range(len(gradient)) if k % len(STEP["targets"]) != 1 or other == "eos_logits"]
        np.testing.assert_array_equal(gradient[kept], finite.grads[other][kept])
        assert np.all(np.isnan(gradient) == np.isnan(np.where(np.isnan(gradient), np.nan, gradient)))


def test_no_frames_and_no_positions():
    empty = {name: value[:0] for name, value in STEP.items() if not name.startswith("eos")}
    ends = {name: value for name, value in STEP.items() if name.startswith("eos")}
    found = compute(empty | ends)
    assert np.isnan(found.loss)
    assert found.components["eos"] == compute().components["eos"]
    assert found.grads["targets"].shape == (0, 5)
    assert np.isnan(compute(STEP | {name: value[:0] for name, value in ends.items()}).loss)


def test_on_the_command_line_training_can_be_denied(tmp_path, run):  # noqa: F811
    file = tmp_path / "step.safetensors"
    save_file(STEP, file)
    for options, keywords in (((), {}), (("--no-training",), {"training": False}), (("--training",), {})):
        status, out, err = run("compute", "pocket_tts", str(file), *options)
        assert (status, err) == (0, "")
        assert out.splitlines()[0].split() == ["loss", repr(float(compute(**keywords).loss))]
        assert "flow_distill" in out


def swapped(_, values, term):
    return values[term.end].reshape(-1, 1), values[term.start].reshape(-1, 1)


def inverted(self, values, labels, c):
    return PocketTts.ends(self, values, labels == 0, c)


@pytest.mark.parametrize(
    ("step", "words"),
    [({"times": swapped}, "start and end times"), ({"ends": inverted}, "labels of the end of speech are inverted")],
)
def test_what_is_taken_for_something_else_is_named(step, words):
    kernel = with_steps(PocketTts, **step)("pocket_tts")
    assert words in first_name(judgement(kernel, questions("pocket_tts")))


BAD = [
    ({"velocity": STEP["velocity"][0]}, ValueError, r"velocity has shape \(5,\); expected \[N, D\]"),
    ({"noise": STEP["noise"][1:]}, ValueError, r"noise has shape \(5, 5\); expected \(6, 5\), the shape of velocity"),
    ({"targets": STEP["targets"][:, 1:]}, ValueError, r"targets has shape \(3, 4\); expected \(3, 5\), \[F, D\]"),
    ({"targets": np.float32(1)}, ValueError, r"targets has shape \(\)"),
    ({"targets": STEP["noise"][:4]}, ValueError, r"velocity has shape \(6, 5\); expected 4 rows, 1 for each of"),
    ({"flow_loss_num_samples": 4}, ValueError, r"expected 12 rows, 4 for each of targets \(3, 5\)"),
    ({"flow_loss_num_samples": 0}, ValueError, "flow_loss_num_samples is 0; expected at least 1"),
    ({"log_variance": STEP["log_variance"][None]}, ValueError, r"log_variance has shape \(1, 6\); expected \(6,\) or"),
    ({"start_times": None}, ValueError, "start_times is None; expected an array, as jump_velocity is given"),
    (dict.fromkeys(DISTILLATION) | {"training": False}, ValueError, "jump_velocity is None; expected an array: dist"),
    (dict.fromkeys(DISTILLATION) | {"lsd_distill_probability": 1.0}, ValueError, "jump_velocity is None"),
    ({"lsd_distill_probability": 0.0}, ValueError, "lsd_distill_probability is 0.0; expected a positive number"),
    ({"lsd_distill_probability": 1.5}, ValueError, r"lsd_distill_probability is 1.5; expected a number in \[0, 1\]"),
    ({"eos_loss_weight": np.inf}, ValueError, "eos_loss_weight is inf; expected a finite number of at least 0"),
    ({"training": 2}, TypeError, "training is 2 of type int; expected True or False"),
    ({"eos_labels": STEP["eos_labels"][1:]}, ValueError, r"eos_labels has shape \(4,\); expected \(5,\)"),
    ({"eos_labels": STEP["eos_labels"].astype(str)}, TypeError, "eos_labels has dtype <U5; expected bool or numbers"),
    ({"velocity": np.zeros((6, 5), int)}, TypeError, "velocity has dtype int64"),
    ({"grad_output": {"flow": 1.0}}, ValueError, "grad_output has 'flow'; expected components: flow_diagonal, flow_d"),
    ({"grad_output": np.ones(3)}, ValueError, r"grad_output has shape \(3,\)"),
    ({"grad": "times"}, ValueError, "grad is 'times'; expected one of 'velocity'"),
    ({"backend": "gpu"}, ValueError, "backend is 'gpu'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=lambda value: value if type(value) is str else "")
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        compute(STEP | arguments)
