"""Which replica of an engine gets a request: the one that holds its prefix, unless its load makes that dearer.

blocks    a prompt as hashes of its growing prefix
mirror    what one replica's prefix cache holds, as far as requests and reports tell
load      the work that replicas were given of late
placer    the choice
"""

from trimtab.placement.blocks import BLOCK_BYTES, prefix_blocks
from trimtab.placement.placer import Choice, Placer

__all__ = ["BLOCK_BYTES", "Choice", "Placer", "prefix_blocks"]
