"""Classes and rows on several ranks, in torch's formulas; one process computes what each rank would."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import refloss

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTHS = (4, 1, 6)


def rows(seed: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(shape[-1], size=shape[:-1])
    labels.flat[1::4] = -100
    return generator.standard_normal(shape) * 4.0, labels


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.3}, {"reduction": "sum", "label_smoothing": 1.0}])
def test_shards_side_by_side(options: dict[str, Any]) -> None:
    x, labels = rows(1, 9, 11)
    shards = [torch.tensor(part, requires_grad=True) for part in np.split(x, np.cumsum(WIDTHS)[:-1], axis=1)]
    loss = cross_entropy(torch.cat(shards, dim=1), torch.tensor(labels), **options)
    slopes = torch.autograd.grad(-1.5 * loss, shards)
    found = refloss.vocab_parallel_cross_entropy(shards, labels, grad_output=-1.5, **options)
    close(found.loss, loss.item())
    for gradient, slope in zip(found.grads["shards"], slopes, strict=True):
        close(gradient, slope)


def test_megatron_s_formula_is_a_distribution() -> None:
    """1 − α on the label, α/(K − 1) elsewhere, as torch takes distributions."""
    x, labels = rows(2, 5, 11)
    labels = np.maximum(labels, 0)
    target = torch.full((5, 11), 0.2 / 10, dtype=torch.float64).scatter_(1, torch.tensor(labels)[:, None], 0.8)
    logits = torch.tensor(x, requires_grad=True)
    loss = cross_entropy(logits, target)
    (slope,) = torch.autograd.grad(loss, logits)
    found = refloss.vocab_parallel_cross_entropy(
        x, labels, widths=WIDTHS, label_smoothing=0.2, label_smoothing_formula="megatron"
    )
    close(found.loss, loss.item())
    close(found.grads["shards"], slope)


@pytest.mark.parametrize("formula", ["torch", "megatron"])
def test_local_classes(formula: Literal["torch", "megatron"]) -> None:
    """Each rank differentiates a loss of its own, for its own classes."""
    widths = (5, 6)
    x, labels = rows(3, 7, 11)
    found = refloss.vocab_parallel_cross_entropy(
        np.split(x, [5], axis=1),
        labels,
        label_smoothing=0.2,
        label_smoothing_formula=formula,
        label_smoothing_classes="local",
    )
    counted = torch.tensor(labels != -100)
    losses = np.asarray(found.loss)
    for rank, (start, width) in enumerate(zip((0, 5), widths, strict=True)):
        logits = torch.tensor(x, requires_grad=True)
        log_p = torch.log_softmax(logits, dim=1)[counted]
        share = 0.2 if formula == "torch" else 0.2 * width / (width - 1)
        of_label = log_p.gather(1, torch.tensor(labels)[counted][:, None])[:, 0]
        loss = -((1 - share) * of_label + share * log_p[:, start : start + width].mean(dim=1)).mean()
        (slope,) = torch.autograd.grad(loss, logits)
        close(losses[rank], loss.item())
        close(found.grads["shards"][rank], slope[:, start : start + width])


def test_log_of_stored_probabilities() -> None:
    """As Megatron takes the mean of log p: of what its gradient is made of."""
    logits = torch.tensor([[0.0, -200.0]])
    assert torch.softmax(logits, dim=1).log().mean() == -math.inf
    found = refloss.vocab_parallel_cross_entropy([logits], [0], label_smoothing=0.5)
    assert found.loss == 0.5 * 100


def test_what_ranks_send() -> None:
    x, labels = rows(4, 2, 5, 11)
    found = refloss.vocab_parallel_cross_entropy(
        [torch.tensor(part) for part in np.split(x, np.cumsum(WIDTHS)[:-1], axis=-1)],
        labels,
        softcap=5.0,
        temperature=0.7,
        label_smoothing=0.1,
    ).intermediates
    y = 5.0 * torch.tanh(torch.tensor(x) / 5.0) / 0.7
    top = y.amax(dim=-1)
    for rank, part in enumerate(torch.split(y, [*WIDTHS], dim=-1)):
        close(found["maximum"][rank], part.amax(dim=-1))
        close(found["sum_exp"][rank], (part - top[..., None]).exp().sum(dim=-1))
        np.testing.assert_allclose(found["logit_sum"][rank], part.sum(dim=-1), rtol=1e-10)
    lse = found["common_maximum"] + np.log(found["total"])
    close(lse, torch.logsumexp(y, dim=-1))
    of_label = np.take_along_axis(y.numpy(), np.maximum(labels, 0)[..., None], -1)[..., 0]
    close(found["label_logit"].sum(axis=0), np.where(labels == -100, 0.0, of_label))


@pytest.mark.parametrize(("axis", "along"), [("batch", 0), ("sequence", 1)])
def test_ranks_of_rows(axis: Literal["batch", "sequence"], along: int) -> None:
    """What torch's gradients come to on the way that each reducer takes."""
    x, labels = rows(5, 4, 6, 11)
    found = refloss.shards(np.split(x, 2, along), np.split(labels, 2, along), axis=axis)
    logits = [torch.tensor(part, requires_grad=True) for part in np.split(x, 2, along)]
    losses = [
        cross_entropy(part.reshape(-1, 11), torch.tensor(rank.targets).reshape(-1), reduction="sum")
        for part, rank in zip(logits, found.ranks, strict=True)
    ]
    counts = [rank.count for rank in found.ranks]

    def reduced(divisors: Sequence[float]) -> tuple[float, list[Any]]:
        total = torch.stack([loss / divisor for loss, divisor in zip(losses, divisors, strict=True)]).sum()
        return total.item(), list(torch.autograd.grad(total, logits, retain_graph=True))

    loss, grads = reduced([sum(counts)] * 2)
    close(found.loss, loss)
    for rank, grad in zip(found.ranks, grads, strict=True):
        close(rank.grad, grad)
        close(rank.grad_for_mean, 2 * grad)
    wrong: dict[str, Sequence[float]] = {
        "a mean of the means of ranks": [2 * count for count in counts],
        "the means of ranks are added": counts,
        "the mean of a reducer is not undone": [2 * sum(counts)] * 2,
        "a reducer that adds is taken for one that takes the mean": [sum(counts) / 2] * 2,
    }
    for words, divisors in wrong.items():
        loss, grads = reduced(divisors)
        mistaken = found.mistakes[words]()
        close(mistaken.loss, loss)
        for got, grad in zip(mistaken.grads, grads, strict=True):
            close(got, grad)
