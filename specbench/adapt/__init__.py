"""What a draft model needs to learn from the target's verdicts: LoRA layers, adapter files, what was observed.

Nothing here trains: a round of learning is `specbench.training.rounds`, on the parts of the training runner.
"""
