"""Semantic reuse: which earlier question means the same as a new one, and how sure that is.

`embed` names the two embedders (`static`: 0.1 ms, `minilm`: some ms) and loads them; `pairs` scores two texts;
`groups` gathers questions whose answers were equal; `promise` decides hit or miss so that the share of wrong hits stays
under what the owner asked. Nothing here knows of requests, routes or stores. It needs the extra `trimtab[semantic]`.
"""

import os

# numpy's BLAS reads this when it is loaded, so only once. Its threads wait for each other awake; where anything else
# runs on the machine, a refit of 0.2 s took 0.6 to 1 s with two of them, and kept both processors.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
