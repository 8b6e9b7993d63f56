"""Losses as somebody writes them in float32 NumPy, each right without a flaw, and wrong in one way with one."""

import itertools

import numpy as np

ONE, HALF = np.float32(1), np.float32(0.5)
BLOCK = 1024
runs = itertools.count()


def distances(logits, flaw):
    """Of a row's logits to its maximum."""
    maximum = logits.max(axis=1, keepdims=True)
    if flaw == "no maximum":
        maximum = np.zeros_like(maximum)
    if flaw == "the batch's maximum":
        maximum = np.full_like(maximum, maximum.max())
    if flaw == "the maximum is not taken below -64":
        maximum = np.maximum(maximum, np.float32(-64))
    distance = logits - maximum
    if flaw == "distances clamped at -50":
        distance = np.maximum(distance, np.float32(-50))
    return distance


def normalisers(logits, distance, flaw):
    """Sums of the exponentials of distances."""
    rows, classes = logits.shape
    terms = np.exp(distance)
    if flaw == "blocks are not rescaled":
        total, largest = np.zeros(rows, np.float32), np.full(rows, -np.inf, np.float32)
        for first in range(0, classes, BLOCK):
            block = logits[:, first : first + BLOCK]
            largest = np.maximum(largest, block.max(axis=1))
            total += np.exp(block - largest[:, None]).sum(axis=1)
        return total[:, None]
    if flaw == "the tail is left out" and classes > BLOCK:
        return terms[:, : classes // BLOCK * BLOCK].sum(axis=1, keepdims=True)
    total = terms.sum(axis=1, keepdims=True)
    if flaw == "padded classes are counted":
        total += np.float32(-classes % 8) * np.exp(distance - logits)[:, :1]
    return total


def log_softmax(logits, flaw):
    """Log-probabilities and probabilities of rows."""
    distance = distances(logits, flaw)
    total = normalisers(logits, distance, flaw)
    probability = np.exp(distance) / total
    if flaw == "log of max(p, tiny)":
        return np.log(np.maximum(probability, np.finfo(np.float32).tiny)), probability
    if flaw == "log of p + 1e-30":
        return np.log(probability + np.float32(1e-30)), probability
    return distance - np.log(total), probability


def one_hot(labels, classes, ignore_index, flaw):
    """Rows of the unit matrix, and which labels count."""
    if flaw == "ignore_index of 32 bits":
        labels, ignore_index = labels.astype(np.int32), int(np.int64(ignore_index).astype(np.int32))
    if flaw == "ignore_index is -100":
        ignore_index = -100
    counted = labels != ignore_index
    return np.eye(classes, dtype=np.float32)[np.where(counted, labels, 0) % classes] * counted[:, None], counted


def masses(target, weight, counted, smoothing, flaw):
    """What each class weighs in the loss of a row."""
    mass = weight * ((ONE - smoothing) * target + smoothing / np.float32(target.shape[1]))
    return mass if flaw == "smoothing reaches ignored rows" else mass * counted[:, None]


def row_gradients(mass, probability, counted, flaw):
    """Of the logits of rows."""
    pushed = mass.sum(axis=1, keepdims=True)
    if flaw == "ignored rows have gradients":
        pushed = np.where(counted[:, None], pushed, ONE)
    if flaw == "targets are taken to sum to 1":
        pushed = np.where(counted[:, None], ONE, pushed)
    pulled = mass * HALF if flaw == "half a label in the gradient" else mass
    return pushed * probability - pulled


def row_factors(target, logits, flaw):
    """What each row is multiplied by: 1 where nothing is wrong."""
    factors = np.ones(len(target), np.float32)
    if flaw == "the first row twice":
        factors[0] = 2.0
    if flaw == "class 0 counts double":
        factors[target[:, 0] == 1.0] = 2.0
    if flaw == "the last bit depends on the batch" and len(target) > 1:
        factors[-1] = np.nextafter(ONE, HALF)
    if flaw == "a row depends on the next one":
        factors += np.float32(1e-3) * np.tanh(np.roll(np.where(np.isfinite(logits), logits, 0.0).sum(axis=1), -1))
    return factors


def upstream(cotangent, flaw):
    """The upstream gradient."""
    cotangent = np.asarray(cotangent, np.float32)
    if flaw == "ignores the cotangent":
        return np.ones_like(cotangent)
    if flaw == "the cotangent's sign":
        return np.abs(cotangent)
    if flaw == "the first cotangent for all rows" and cotangent.ndim:
        return np.full_like(cotangent, cotangent.flat[0])
    return cotangent


@np.errstate(all="ignore")
def softmax_rows(logits, labels, *, weight=None, ignore_index=-100, smoothing=0.0, reduction, divisor, cotangent, flaw):
    """Loss and gradient of rows [R, C]."""
    classes = logits.shape[1]
    weight = np.ones(classes, np.float32) if weight is None else weight
    if labels.dtype.kind == "f":
        target, counted = labels, np.ones(len(labels), bool)
    else:
        target, counted = one_hot(labels, classes, ignore_index, flaw)
    log_probability, probability = log_softmax(logits, flaw)
    mass = masses(target, weight, counted, np.float32(smoothing), flaw)
    terms = mass * (log_probability if flaw == "NaN of masked classes" else np.where(mass > 0, log_probability, 0))
    losses, gradient = -terms.sum(axis=1), row_gradients(mass, probability, counted, flaw)
    if flaw == "log of max(p, tiny)":
        gradient[(target * probability).sum(axis=1) < np.finfo(np.float32).tiny] = 0.0
    leaks = flaw in ("ignored rows have gradients", "smoothing reaches ignored rows")
    gradient[~counted & (not leaks)] = 0.0
    factors = row_factors(target, logits, flaw)
    losses, gradient = losses * factors, gradient * factors[:, None]
    if flaw == "too small by a constant":
        losses = losses - counted.astype(np.float32)
    if divisor is None:
        by_weight = labels.dtype.kind != "f" and flaw != "count for sum of weights"
        divisor = (target * weight).sum() if by_weight else np.float32(counted.sum())
        divisor = np.float32(len(logits)) if flaw == "mean over every row" else divisor
    cotangent, divisor = upstream(cotangent, flaw), np.float32(divisor)
    gradient = (cotangent[..., None] if cotangent.ndim else cotangent) / divisor * gradient
    loss = losses if reduction == "none" else np.sum(losses) / divisor
    if flaw == "differs from run to run" and reduction == "mean" and next(runs) % 2:
        loss = np.nextafter(loss, np.float32(np.inf))
    return loss, gradient


def cross_entropy(inputs, parameters, cotangent, flaw=None):
    logits, target = inputs["logits"], inputs["target"]
    if logits.ndim > 2 and target.dtype.kind == "f":
        raise NotImplementedError
    reduction = parameters.get("reduction", "mean")
    rows = np.moveaxis(logits, 1, -1)
    loss, gradient = softmax_rows(
        rows.reshape(-1, rows.shape[-1]),
        target if target.dtype.kind == "f" else target.reshape(-1),
        weight=inputs.get("weight"),
        ignore_index=parameters.get("ignore_index", -100),
        smoothing=parameters.get("label_smoothing", 0.0),
        reduction=reduction,
        divisor=None if reduction == "mean" else 1.0,
        cotangent=cotangent,
        flaw=flaw,
    )
    gradient = np.moveaxis(gradient.reshape(rows.shape), -1, 1)
    if flaw == "writes to its input":
        logits -= logits.max()
    return loss, {"logits": gradient}


def masked_lm(inputs, parameters, cotangent, flaw=None):
    logits, labels = inputs["logits"], inputs["labels"]
    items = parameters.get("num_items_in_batch")
    loss, gradient = softmax_rows(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        ignore_index=parameters.get("ignore_index", -100),
        reduction="sum",
        divisor=None if flaw == "blind to num_items_in_batch" else items,
        cotangent=cotangent,
        flaw=None,
    )
    length = np.float32(labels.shape[1]) if flaw == "mean over sequences" else ONE
    return loss * length, {"logits": gradient.reshape(logits.shape) * length}


def causal_lm(inputs, parameters, cotangent, flaw=None):
    labels, ignored = inputs["labels"], parameters.get("ignore_index", -100)
    last = np.full((len(labels), 1), ignored)
    shifted = np.concatenate([labels[:, 1:], last], axis=1)
    if flaw == "shifted over the flattened batch":
        shifted = np.append(labels.reshape(-1)[1:], ignored).reshape(labels.shape)
    if "shift_labels" in inputs and flaw != "shifted within each shard":
        shifted = inputs["shift_labels"]
    return masked_lm({"logits": inputs["logits"], "labels": shifted}, parameters, cotangent)


def reduced(losses, slopes, parameters, cotangent, divisor=None, default="mean"):
    """The loss, and gradients by name, of losses and slopes of elements."""
    reduction = parameters.get("reduction", default)
    if divisor is None:
        divisor = {"mean": losses.size, "batchmean": len(losses)}.get(reduction, 1)
    coefficient = np.asarray(cotangent, np.float32) / np.float32(divisor)
    loss = losses if reduction == "none" else losses.sum() / np.float32(divisor)
    return loss, {name: coefficient * slope for name, slope in slopes.items()}


@np.errstate(all="ignore")
def bce_with_logits(inputs, parameters, cotangent, flaw=None):
    if "pos_weight" in inputs:
        raise NotImplementedError
    x, t = inputs["logits"], inputs["target"]
    weight = inputs.get("weight", ONE)
    y = np.clip(x, -15, 15) if flaw == "logits are clamped" else x
    softplus = np.log(ONE + np.exp(y)) if flaw == "softplus overflows" else np.maximum(y, 0) + np.log1p(np.exp(-abs(y)))
    if flaw == "targets are rounded":
        t = np.round(t)
    losses = weight * (softplus - y * t)
    slope = weight * (ONE / (ONE + np.exp(-x)) - t)
    if flaw == "negative logits have half the slope":
        slope = np.where(x < 0, HALF * slope, slope)
    return reduced(losses, {"logits": slope}, parameters, cotangent)


@np.errstate(all="ignore")
def bce(inputs, parameters, cotangent, flaw=None):
    p, t, weight = inputs["input"], inputs["target"], inputs.get("weight", ONE)
    small = np.float32(1e-7) if flaw == "log of p + 1e-7" else np.float32(0)
    positive, negative = np.log(p + small), np.log1p(-p + small)
    losses = -weight * (t * np.maximum(positive, -100) + (ONE - t) * np.maximum(negative, -100))
    slope = weight * (p - t) / np.maximum(p * (ONE - p), np.float32(1e-12))
    return reduced(losses, {"input": slope}, parameters, cotangent)


def kl_div(inputs, parameters, cotangent, flaw=None):
    x, t = inputs["input"], inputs["target"]
    if parameters.get("log_target"):
        raise NotImplementedError
    with np.errstate(all="ignore"):
        logarithm = np.log(np.maximum(t, np.float32(1e-10)) if flaw == "log of max(t, 1e-10)" else t)
        losses = t * (logarithm - x)
        if flaw != "NaN where t is 0":
            losses = np.where(t > 0, losses, 0)
        if flaw == "the divergence is reversed":
            losses = np.exp(x) * (x - logarithm)
    return reduced(losses, {"input": -t}, parameters, cotangent)


@np.errstate(all="ignore")
def sigmoid_focal(inputs, parameters, cotangent, flaw=None):
    x, t = inputs["inputs"], inputs["targets"]
    alpha, gamma = (np.float32(parameters.get(name, value)) for name, value in (("alpha", 0.25), ("gamma", 2.0)))
    y = np.clip(x, -15, 15) if flaw == "logits are clamped" else x
    p, rest = ONE / (ONE + np.exp(-y)), ONE / (ONE + np.exp(y))
    missed = p * (ONE - t) + rest * t
    loss = np.maximum(y, 0) - y * t + np.log1p(np.exp(-abs(y)))
    weight = ONE if alpha < 0 else alpha * t + (ONE - alpha) * (ONE - t)
    if flaw == "α is on positives alone" and alpha >= 0:
        weight = alpha * t + (ONE - t)
    power = np.power(missed, gamma)
    steep = (
        p * rest * np.power(missed, gamma - 1)
        if flaw == "γ < 1 is infinite"
        else p * rest * power / np.maximum(missed, np.float32(1e-37))
    )
    slope = weight * (power * (p - t) + gamma * loss * (ONE - 2 * t) * steep)
    boxes = np.float32(parameters.get("num_boxes", 1.0))
    reduction = parameters.get("reduction", "mean")
    divisor = {"mean": boxes * np.float32(x.shape[1]), "sum": boxes}.get(reduction, ONE)
    return reduced(weight * power * loss, {"inputs": slope}, parameters, cotangent, divisor)


@np.errstate(all="ignore")
def dice(inputs, parameters, cotangent, flaw=None):
    shape = inputs["inputs"].shape
    x, t = (inputs[name].reshape(len(inputs[name]), -1) for name in ("inputs", "targets"))
    p = ONE / (ONE + np.exp(-x))
    heavy = np.ones_like(x)
    if flaw == "the first pixel counts double":
        heavy[:, 0] = 2
    top, bottom = 2 * (heavy * p * t).sum(axis=1) + 1, (p + t).sum(axis=1) + 1
    losses = ONE - top / bottom
    slope = p * (ONE - p) * (top[:, None] - 2 * heavy * t * bottom[:, None]) / bottom[:, None] ** 2
    divisor = np.float32(parameters.get("num_boxes", 1.0)) if parameters.get("reduction") != "none" else ONE
    loss = losses if parameters.get("reduction") == "none" else losses.sum() / divisor
    cotangent = np.asarray(cotangent, np.float32)
    coefficient = (cotangent[:, None] if cotangent.ndim else cotangent) / divisor
    return loss, {"inputs": (coefficient * slope).reshape(shape)}


def distance(power):
    """mse, l1, huber or smooth_l1."""

    def fn(inputs, parameters, cotangent, flaw=None):
        if "weight" in inputs:
            raise NotImplementedError
        d = inputs["input"] - inputs["target"]
        losses, slope = power(d, parameters, flaw)
        if flaw == "negative differences have half the slope":
            slope = np.where(d < 0, HALF * slope, slope)
        if flaw == "inputs are clamped at 16":
            losses = power(np.clip(inputs["input"], -16, 16) - np.clip(inputs["target"], -16, 16), parameters, flaw)[0]
        return reduced(losses, {"input": slope, "target": -slope}, parameters, cotangent)

    return fn


@distance
def mse(d, _parameters, _flaw):
    return d * d, 2 * d


@distance
def l1(d, _parameters, flaw):
    if flaw == "√(d² + ε)":
        size = np.sqrt(d * d + np.float32(1e-6))
        return size, d / size
    return abs(d), np.sign(d)


def _huber(d, delta):
    size, near = abs(d), abs(d) < delta
    return np.where(near, HALF * d * d, delta * (size - HALF * delta)), np.where(near, d, delta * np.sign(d))


@distance
def huber(d, parameters, _flaw):
    return _huber(d, np.float32(parameters.get("delta", 1.0)))


@distance
def smooth_l1(d, parameters, flaw):
    beta = np.float32(parameters.get("beta", 1.0))
    if beta == 0:
        return abs(d), np.sign(d)
    losses, slope = _huber(d, beta)
    return (losses, slope) if flaw == "Huber for smooth L1" else (losses / beta, slope / beta)


def _corners(boxes, parameters):
    if parameters.get("box_format") == "cxcywh":
        raise NotImplementedError
    return boxes[..., :2], boxes[..., 2:]


def iou(inputs, parameters, cotangent, flaw=None):
    (low, high), (other_low, other_high) = (_corners(inputs[name], parameters) for name in ("boxes1", "boxes2"))
    pixel = np.float32(2**-4) if flaw == "a pixel is added to sizes" else np.float32(0)
    both = np.maximum(np.minimum(high, other_high) - np.maximum(low, other_low) + pixel, 0).prod(axis=-1)
    area, other = ((b - a + pixel).prod(axis=-1) for a, b in ((low, high), (other_low, other_high)))
    union = area + other - both
    if flaw == "the first area for the union":
        union = area
    if flaw == "coordinates are clamped to [0, 1]":
        both = np.maximum(np.minimum(np.minimum(high, other_high), 1) - np.maximum(low, other_low), 0).prod(axis=-1)
    losses = ONE - both / (union + (np.float32(1e-7) if flaw == "an ε in the quotient" else 0))
    loss, _ = reduced(losses, {}, parameters, cotangent)
    return loss, {}
