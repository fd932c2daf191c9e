"""Make the demo model from nothing: tokenizer, target, draft and the figures in the README.

The recipe is shipped whole, so that every number beside the weights can be made again.  It
reads three MIT-licensed files, named relative to ``--data``::

    suites/gsm8k/train.jsonl            (question, answer)
    text/gpteacher/roleplay.jsonl.gz    (instruction, input, output)
    text/gpteacher/codegen.jsonl.gz     (instruction, input, output)

and writes ``target/``, ``draft/``, ``samples.md`` and ``metrics.json`` under ``--out``::

    python -m specbench.demo.recipe --data DATA --out OUT --threads 2

Stages run in order; ``--stages`` picks some, each reading what the earlier ones left in OUT.
"""
