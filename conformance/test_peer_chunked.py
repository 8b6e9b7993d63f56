"""Liger-Kernel's chunked losses as they are called, of hidden states and a head's weights, against refloss.

refloss has no such function: linear_selected_log_probs makes log-probabilities, a loss of those follows, and its
gradient goes back. Liger takes log-probabilities in float32 and accumulates losses in it, whatever the hidden states
are, so that the two agree to digits of float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import refloss
from conformance import peers
from conformance.call import array

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 2e-6  # of the largest element
PAIRS, LENGTH, SIZE, CLASSES = 3, 5, 6, 11
DESIRABLE = np.array([True, False, True, True, False, False])


def tensors(rows: int = 2 * PAIRS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, a head, and labels of answers of several lengths."""
    random = np.random.default_rng(23)
    hidden = torch.tensor(random.standard_normal((rows, LENGTH, SIZE)))
    weight = torch.tensor(random.standard_normal((CLASSES, SIZE)))
    labels = torch.tensor(random.integers(0, CLASSES, (rows, LENGTH)))
    for row, length in enumerate(random.integers(1, LENGTH + 1, rows)):
        labels[row, length:] = -100
    return hidden, weight, labels


def liger(module: str, function: str) -> Callable[..., Any]:
    """A chunked loss; skipped where it is not here."""
    try:
        return getattr(peers.imported(f"liger_kernel.chunked_loss.{module}"), function)  # type: ignore[no-any-return]
    except peers.UnavailableError as reason:
        pytest.skip(str(reason))


def theirs_of(loss: Callable[..., Any], hidden: torch.Tensor, weight: torch.Tensor) -> list[np.ndarray]:
    """A loss, and gradients of hidden states and weights."""
    leaves = [each.detach().clone().requires_grad_() for each in (hidden, weight)]
    value = loss(*leaves)
    value = value[0] if isinstance(value, tuple) else value
    return [array(value), *(array(each) for each in torch.autograd.grad(value, leaves))]


def ours_of(
    loss: Callable[..., Any], hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, *, mean: bool
) -> list[np.ndarray]:
    """The same by refloss, where a loss takes sums or means of log-probabilities and gives their gradient."""
    mask = (labels >= 0).numpy()
    given = hidden, weight, torch.where(labels < 0, 0, labels)
    share = mask / (mask.sum(1, keepdims=True) if mean else 1)
    log_probs = (refloss.linear_selected_log_probs(*given, mask=mask, grad=False).loss * share).sum(1)
    value, slopes = loss(log_probs)
    grads = refloss.linear_selected_log_probs(*given, mask=mask, grad_output=slopes[:, None] * share).grads
    return [np.asarray(value), grads["input"], grads["linear_weight"]]


def assert_agree(theirs: list[np.ndarray], ours: list[np.ndarray]) -> None:
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * np.abs(b).max())


def of_pairs(given: np.ndarray, **keywords: Any) -> tuple[float, np.ndarray]:
    """preference_loss of the first half and the second."""
    result = refloss.preference_loss(given[:PAIRS], given[PAIRS:], **keywords)
    return result.loss, np.concatenate([result.grads["chosen_log_probs"], result.grads["rejected_log_probs"]])


def odds(given: np.ndarray, beta: float) -> tuple[float, np.ndarray]:
    """ORPO without the loss of chosen answers, which Liger adds as that of tokens."""
    value, slopes = of_pairs(given, kind="orpo", beta=beta)
    slopes[:PAIRS] += 1 / PAIRS
    return value + given[:PAIRS].mean(), slopes


PREFERENCES: dict[str, tuple[str, dict[str, Any], bool, Callable[..., Any], dict[str, Any]]] = {
    "simpo": ("SimPO", {"beta": 0.3, "gamma": 0.5}, True, of_pairs, {"kind": "simpo", "beta": 0.3, "gamma": 0.5}),
    "cpo": ("CPO", {"beta": 0.3, "label_smoothing": 0.1}, False, of_pairs, {"beta": 0.3, "label_smoothing": 0.1}),
    "orpo": ("ORPO", {"beta": 0.3}, True, odds, {"beta": 0.3}),
}


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences(name: str, chunk: int) -> None:
    title, options, mean, loss, keywords = PREFERENCES[name]
    hidden, weight, labels = tensors()
    module = liger(f"{name}_loss", f"LigerFusedLinear{title}Loss")
    call = module(compiled=False, compute_nll_loss=False, chunk_size=chunk, **options)
    theirs = theirs_of(lambda x, w: call(w, x, labels), hidden, weight)
    assert_agree(theirs, ours_of(lambda given: loss(given, **keywords), hidden, weight, labels, mean=mean))


def test_the_loss_of_chosen_answers() -> None:
    """alpha of a mean over all their tokens beside CPO: what a causal head makes of them."""
    hidden, weight, labels = tensors()
    module = liger("cpo_loss", "LigerFusedLinearCPOLoss")

    def with_alpha(alpha: float) -> list[np.ndarray]:
        call = module(compiled=False, alpha=alpha)
        return theirs_of(lambda x, w: call(w, x, labels), hidden, weight)

    nothing, all_of_it = with_alpha(0.0), with_alpha(0.5)
    chosen = hidden[:PAIRS].reshape(-1, SIZE), weight, labels[:PAIRS].reshape(-1)
    ours = refloss.linear_cross_entropy(*chosen)
    np.testing.assert_allclose(all_of_it[0] - nothing[0], 0.5 * ours.loss, rtol=1e-5)
    slopes = (all_of_it[1] - nothing[1])[:PAIRS].reshape(-1, SIZE)
    np.testing.assert_allclose(slopes, 0.5 * ours.grads["input"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4])
def test_kto(chunk: int) -> None:
    hidden, weight, labels = tensors()
    reference = hidden + 0.1, weight * 0.9
    call = liger("kto_loss", "LigerFusedLinearKTOLoss")(compiled=False, beta=0.3, use_ref_model=True, chunk_size=chunk)
    kl, flags = 0.4, torch.tensor(DESIRABLE)
    options = {"ref_input": reference[0], "ref_weight": reference[1], "kl": torch.tensor(kl)}
    theirs = theirs_of(lambda x, w: call(x, w, labels, preference_labels=flags, **options), hidden, weight)
    mask = (labels >= 0).numpy()
    of_reference = refloss.linear_selected_log_probs(*reference, torch.where(labels < 0, 0, labels), grad=False).loss

    def loss(given: np.ndarray) -> tuple[Any, np.ndarray]:
        result = refloss.kto(given, (of_reference * mask).sum(1), DESIRABLE, kl, beta=0.3)
        return result.loss, result.grads["log_probs"]

    assert_agree(theirs, ours_of(loss, hidden, weight, labels, mean=False))


DISTILLATION = {"jsd": ("jsd_loss", "JSD", 0.5), "cosine": ("cosine_similarity_loss", "CosineSimilarity", 1.0)}


def soft(student: np.ndarray, teacher: np.ndarray, mask: np.ndarray, name: str) -> Any:
    """Of rows of logits: refloss's JSD, or 1 − cosine."""
    if name == "jsd":
        return refloss.distillation(student, teacher, divergence="jsd", mask=mask)
    ones = np.ones(len(student), np.int64)
    return refloss.cosine_embedding(student, teacher, ones, grad_output=mask / mask.sum(), reduction="none")


@pytest.mark.parametrize("chunk", [4, 1024])
@pytest.mark.parametrize("name", DISTILLATION)
def test_distillation(name: str, chunk: int) -> None:
    """Half a loss of labels, and half of the teacher, both over tokens that count, with a temperature of the latter."""
    (student, head, labels), (teacher, _, _) = tensors(), tensors(7)
    student, teacher, labels = student.reshape(-1, SIZE), teacher[:6].reshape(-1, SIZE) * 0.7 + 0.2, labels.reshape(-1)
    module, title, beta = DISTILLATION[name]
    call = liger(module, f"LigerFusedLinear{title}Loss")(compiled=False, beta=beta, chunk_size=chunk, temperature=2.0)
    theirs = theirs_of(lambda x, w: call(x, w, teacher, head, labels), student, head)
    hard = refloss.linear_cross_entropy(student, head, labels)
    mask = (labels >= 0).numpy()
    result = soft((student @ head.T / 2).numpy(), (teacher @ head.T / 2).numpy(), mask, name)
    value = result.loss if name == "jsd" else (result.loss * mask).sum() / mask.sum()
    slope = result.grads["student_logits" if name == "jsd" else "input1"] / 2
    ours = [
        np.asarray((hard.loss + value) / 2),
        (hard.grads["input"] + slope @ head.numpy()) / 2,
        (hard.grads["linear_weight"] + slope.T @ student.numpy()) / 2,
    ]
    assert_agree(theirs, ours)
