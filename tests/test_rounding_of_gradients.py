"""Correct rounding, measured against mpmath: DESIGN's first promise."""

import ml_dtypes
import numpy as np
import pytest
import refloss

from tests.truth import correctly_rounded, cross_entropy_row, pairs, ulp_errors

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
