"""Routing: which requests the cheap model will get right, and which need the strong one.

`data` reads recorded outcomes; `predictor` estimates from a prompt what the strong model would gain; `acceptance` does
so again once the cheap model has answered; `dial` turns scores into choices that keep a share or a cost; `setting`
picks the cheapest of them that keeps the quality; `evaluate` measures all of it by RouteLLM's protocol. Nothing here
knows of requests, routes or stores. It needs the extra `trimtab[semantic]`.
"""

import os

# As in `trimtab.semantic`: numpy's BLAS reads it once, and its threads wait for each other awake.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
