"""Every mistake of the gauntlet: what is wrong, who reported it, where it can be made, and what the judge should say.

A mistake is an honest kernel with one step replaced. `judged` are the words of the judge's first diagnosis. `shows`
says of a case whether the mistake can make a difference there, if that needs something that few cases have. Of every
function that a mistake applies to some cases must have it, in each dtype: a kernel may come in any one of them.
"""

from __future__ import annotations

from tests.gauntlet.mistakes.alignments import ALIGNMENT_MISTAKES
from tests.gauntlet.mistakes.chain import CHAIN_MISTAKES
from tests.gauntlet.mistakes.contrastive import CONTRASTIVE_MISTAKES
from tests.gauntlet.mistakes.distillation import DISTILLATION_MISTAKES
from tests.gauntlet.mistakes.elements import ELEMENT_MISTAKES
from tests.gauntlet.mistakes.flow import FLOW_MISTAKES
from tests.gauntlet.mistakes.heads import HEAD_MISTAKES
from tests.gauntlet.mistakes.labels import LABEL_MISTAKES
from tests.gauntlet.mistakes.linear import LINEAR_MISTAKES
from tests.gauntlet.mistakes.log_probs import LOG_PROB_MISTAKES
from tests.gauntlet.mistakes.margins import MARGIN_MISTAKES
from tests.gauntlet.mistakes.mistake import Mistake
from tests.gauntlet.mistakes.points import POINT_MISTAKES
from tests.gauntlet.mistakes.policies import POLICY_MISTAKES
from tests.gauntlet.mistakes.preferences import PREFERENCE_MISTAKES
from tests.gauntlet.mistakes.regions import REGION_MISTAKES
from tests.gauntlet.mistakes.routers import ROUTER_MISTAKES
from tests.gauntlet.mistakes.shards import SHARD_MISTAKES
from tests.gauntlet.mistakes.softmax import SOFTMAX_MISTAKES
from tests.gauntlet.mistakes.sums import UPSTREAM_MISTAKES
from tests.gauntlet.mistakes.topk import TOPK_MISTAKES
from tests.gauntlet.mistakes.transducers import TRANSDUCER_MISTAKES
from tests.gauntlet.mistakes.triples import TRIPLE_MISTAKES
from tests.gauntlet.mistakes.vectors import VECTOR_MISTAKES

MISTAKES: tuple[Mistake, ...] = (
    *SOFTMAX_MISTAKES,
    *LABEL_MISTAKES,
    *UPSTREAM_MISTAKES,
    *ELEMENT_MISTAKES,
    *MARGIN_MISTAKES,
    *CONTRASTIVE_MISTAKES,
    *TRIPLE_MISTAKES,
    *PREFERENCE_MISTAKES,
    *REGION_MISTAKES,
    *ALIGNMENT_MISTAKES,
    *HEAD_MISTAKES,
    *FLOW_MISTAKES,
    *POINT_MISTAKES,
    *VECTOR_MISTAKES,
    *TRANSDUCER_MISTAKES,
    *LOG_PROB_MISTAKES,
    *TOPK_MISTAKES,
    *LINEAR_MISTAKES,
    *CHAIN_MISTAKES,
    *POLICY_MISTAKES,
    *DISTILLATION_MISTAKES,
    *SHARD_MISTAKES,
    *ROUTER_MISTAKES,
)
