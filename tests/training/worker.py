"""`python worker.py TARGET STORE CHANGED`: a training of the in-memory corpus in a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from training.small import Quiet, make_corpus, make_request

from specbench.training import train

if __name__ == "__main__":
    target, store, changed = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    changed["report_to"] = tuple(changed.get("report_to", ()))
    outcome = train(make_request(target, store, **changed), Quiet(), corpus=make_corpus())
    print(outcome.run_id)
