"""What each pane of each screen shows, in a sentence: the help of the one that has the focus. No Textual."""

from __future__ import annotations

from collections.abc import Mapping

_LANE = (
    "One method's answer, token by token, on its own recorded clock; its border says the speed-up so far and whether "
    "it is measured now. y copies the answer, z makes the pane the whole screen, t shows its step as a tree."
)

PANES: Mapping[str, Mapping[str, str]] = {
    "home": {
        "runs": "Every run and training of the store: its state, its fastest method with the 95 % interval of the "
        "speed-up (≈: not ranked), tokens per step, and a bar a question. enter opens the one under the cursor.",
        "about": "The run under the cursor: its target, a bar a question of the fastest method's speed-up, its "
        "conditions, every method's speed-up, and what must be known beside.",
    },
    "race": {
        "noracing": "No run is open here.",
        **{f"lane{number}": _LANE for number in range(4)},
        "speedups": "The whole run so far: speed-up per method, paired by question, with its 95 % interval.",
        "costs": "Mean milliseconds of a step by phase, as the engine's clock split them.",
        "clock": "Tokens over recorded seconds, a line a method; │ is now, · what is still to come.",
    },
    "tree": {
        "tree": "The step's drafted tree, branch by branch, each node with q, p and verdict; y copies it whole.",
        "node": "The node under the cursor: q, p, the verdict, and what the target would have said in its place.",
        "top": "The target's five likeliest tokens where this node stands; ▸ is the drafted one.",
        "cost": "What this step cost in the timed run, by phase; the replay that made the tree is not timed.",
        "around": "The answer up to this step, the step's own tokens in brackets, the best rejected path struck out.",
    },
    "accept": {
        "heat": "Acceptance by depth, for all and by category, a row a method; u changes the unit.",
        "survival": "Of a method's steps, the share that kept at least k drafted tokens; of one that learns, "
        "acceptance along the stream.",
        "worst": "Answers with the fewest tokens per step. enter replays the one under the cursor, t shows its trees.",
    },
    "speed": {
        "forest": "Speed-ups over the baseline with 95 % intervals over questions; the line at 1.0 is no gain.",
        "waterfall": "Where the seconds of a step go, and what is left of τ after drafting and verifying are paid.",
        "tau": "Speed-up against tokens per step: what lies low on the right pays for its drafts.",
        "batch": "Tokens per second of runs that differ from this one in the batch size alone.",
        "size": "Speed-up against the parameters that the drafter adds.",
    },
    "system": {
        "now": "This machine's cores, memory and load, and what this viewer takes of them, a reading a second. The "
        "clock is that of the core that the viewer is on; where only all can be asked, none is beside a live run.",
        "clean": "The run's own evidence: A/A control, crowded and throttled generations, answers that differ. Asked "
        "again whenever this screen is entered and the run has gone on.",
        "recorded": "The run's device and threads, and what its sampler wrote down a second: its share, that of "
        "others, clocks, its niceness.",
        "processes": "Processes that write a run of this store: share of a core since the last look, memory, niceness.",
    },
    "train": {
        "loss": "Training loss over steps; l draws it on a logarithmic scale, a as an exponential mean.",
        "accuracy": "Held-out accuracy of the drafter by depth, evaluation by evaluation.",
        "tau": "Tokens per step that the drafter would have on held-out text, simulated.",
        "health": "State, learning rate, throughput, checkpoints.",
    },
    "board": {
        "rows": "Methods of all stored runs that are alike in everything that is no method, ranked; ties share a rank. "
        "space marks a run, v compares two.",
        "about": "The row under the cursor: its run, its conditions, and why it has the rank it has.",
    },
    "chat": {
        "log": "The conversation, tokens coloured by how they came; y copies the last answer.",
        "reply": "Figures of the answer under way or the last one; the pace of plain decoding is an estimate.",
        "settings": "What /set and /method change, by the names they use.",
        "message": "A message, or a command: /help lists them. esc leaves the line.",
    },
    "library": {"rows": "Suites, methods, targets and drafters at hand; enter shows all of the one under the cursor."},
}
