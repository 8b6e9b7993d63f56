"""The oracle for deep-learning losses: arrays in, the right loss and the right gradients out."""

from refloss.heads.causal_lm import causal_lm
from refloss.heads.mapping import LOSS_MAPPING
from refloss.heads.masked_lm import masked_lm
from refloss.losses.cross_entropy import cross_entropy
from refloss.parallel import get_num_threads, set_num_threads
from refloss.result import LossResult

__version__ = "0.1.0"

__all__ = [
    "LOSS_MAPPING",
    "LossResult",
    "causal_lm",
    "cross_entropy",
    "get_num_threads",
    "masked_lm",
    "set_num_threads",
]
