"""The queue in front of an engine: fair shares by tenant, interactive before batch, early refusal, an adaptive limit.

`fair` says whose turn is next, `limit` how many run at once, `tokens` what a request weighs; `gate` is all of it.
"""

from trimtab.admission.gate import Asking, Done, Gate, GateTerms, Place
from trimtab.admission.tokens import cost_of, cost_used

__all__ = ["Asking", "Done", "Gate", "GateTerms", "Place", "cost_of", "cost_used"]
