"""Texts that drafters learn from: datasets by name, exact answer masks, packed rows, answers written by the target.

    documents = load_documents("alpaca", tokenizer=tokenizer, max_len=1024, seed=0)   # ids, learn mask, counts
    train, held_out = documents.split(64, seed=0)               # a prompt is never on both sides
    packed = train.pack(1024, seed=0)                           # rows of 1024 tokens
    rows = packed.order(epoch, rank=rank, world_size=size)      # a function of (seed, epoch)
    batch = packed.batch(rows[:8])                              # .tokens_BT .document_BT .learn_BT, as recipe.Features
    held_out[0].prompt, held_out[0].answer                      # ids up to the first answer, and that answer

    prompts = load_prompts("demo", seed=0, limit=500)           # .prompts, .counts
    from specbench.data.writing import write_responses          # apart, because it loads torch
    documents = write_responses(lm, prompts.prompts, sampling=Sampling(), max_new_tokens=128, seed=0, max_len=1024)

Position for an exact resume is (epoch, index into `order(epoch)`): nothing here keeps a state. No torch at import.
"""

from specbench.data.cards import DatasetCard, packaged_cards
from specbench.data.columns import Columns, parse_columns
from specbench.data.counts import Counts
from specbench.data.documents import Document, Documents, Split
from specbench.data.listing import DatasetStatus, survey
from specbench.data.loading import load_documents
from specbench.data.packing import Batch, PackedDataset
from specbench.data.prompts import Prompt, Prompts, load_prompts

__all__ = [
    "Batch",
    "Columns",
    "Counts",
    "DatasetCard",
    "DatasetStatus",
    "Document",
    "Documents",
    "PackedDataset",
    "Prompt",
    "Prompts",
    "Split",
    "load_documents",
    "load_prompts",
    "packaged_cards",
    "parse_columns",
    "survey",
]
