"""Suffix decoding (Oliaro 2024, arXiv 2411.04975): what followed these last tokens wherever they stood before.

`trie` holds texts and counts their substrings, `walk` turns a place in it into a draft, `memory` is what a drafter
keeps: a trie per sequence and one of finished answers. No torch. Two methods use them and may not know each other,
so they live in the layer below.
"""

from specbench.suffix.memory import Settings, Snapshot, SuffixMemory, load_answers, save_answers
from specbench.suffix.trie import SuffixTrie
from specbench.suffix.walk import Perturb, Proposal, perturb_by

__all__ = [
    "Perturb",
    "Proposal",
    "Settings",
    "Snapshot",
    "SuffixMemory",
    "SuffixTrie",
    "load_answers",
    "perturb_by",
    "save_answers",
]
