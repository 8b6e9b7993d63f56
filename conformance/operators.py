"""PyTorch's descriptions of its functions, from its operator tests, and their sample inputs."""

from __future__ import annotations

import random
from typing import Any
from unittest import mock

import torch
from torch.testing._internal import common_utils
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo import core


def operator(function: str) -> Any:
    """The description of a function of torch.nn.functional."""
    return next(each for each in op_db if each.name == f"nn.functional.{function}")


def _seed(value: int) -> None:
    random.seed(value)
    torch.default_generator.manual_seed(value)


def samples(of: Any, dtype: torch.dtype) -> list[Any]:
    """An operator's sample inputs.

    Left out is what costs many times as much as they do: torch looks for a test of its own among the callers, and notes
    all of them with the seed of every GPU that there may be.
    """
    with (
        mock.patch.object(common_utils, "extract_test_fn", return_value=None),
        mock.patch.object(core, "extract_test_fn", return_value=None),
        mock.patch.object(common_utils, "set_rng_seed", _seed),
    ):
        return list(of.sample_inputs("cpu", dtype, requires_grad=False))
