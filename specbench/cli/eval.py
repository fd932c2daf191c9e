"""`specbench eval`: simulated acceptance of any method on any data set, and accuracy by depth of a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

from specbench.bench.request import Dtype
from specbench.cli import options
from specbench.cli.failures import note
from specbench.cli.help import Sections, examples, new_app
from specbench.cli.options import HOW, WHAT, option
from specbench.cli.text import Column, show, show_json, show_table, visible
from specbench.cli.train_progress import open_train_progress
from specbench.training.request import TrainRequest

app = new_app()


@app.command(
    cls=Sections,
    epilog=examples(
        "specbench eval --method redrafter --set redrafter.weights=results/drafters/NAME --dataset gsm8k",
        "specbench eval --method lstm --set lstm.weights=demo --documents 100 --json",
        "specbench eval --method prompt_lookup --dataset gsm8k",
    ),
)
def evaluate(
    method: Annotated[str, option("--method", WHAT, "M", "The drafter's method.")],
    set_: options.Settings = None,
    target: options.Target = None,
    dataset: Annotated[str | None, option("--dataset", WHAT, "D", "See `specbench data ls`; `self:D`.")] = None,
    columns: Annotated[str | None, option("--columns", WHAT, "SPEC", "Which columns hold what.")] = None,
    template: Annotated[
        str | None,
        option("--template", WHAT, "NAME", "Of conversations: `chat` (the target's own) or a plain one, as for `run`."),
    ] = None,
    documents: Annotated[int | None, option("--documents", WHAT, "N", "A seeded subset; default 200.")] = 200,
    response_tokens: Annotated[
        int | None, option("--response-tokens", WHAT, "N", "Longest answer under `self`.")
    ] = None,
    prompts: Annotated[int | None, option("--eval-prompts", HOW, "N", "For the simulated acceptance.")] = None,
    new_tokens: Annotated[int | None, option("--eval-new-tokens", HOW, "N", "Per prompt.")] = None,
    max_length: Annotated[int | None, option("--max-length", HOW, "N", "Tokens of a packed row.")] = None,
    micro_batch: Annotated[int | None, option("--micro-batch", HOW, "N", "Rows of a forward.")] = None,
    seed: Annotated[int | None, option("--seed", HOW, "N", "Of the subset; default 0.")] = None,
    dtype: options.TargetDtype = None,
    quantisation: options.Quantisation = None,
    device: options.Device = None,
    threads: options.Threads = None,
    data: options.DataDirs = None,
    methods_dir: options.MethodsDirs = None,
    as_json: options.Json = False,
) -> None:
    """How often a drafter is right, by depth, and how many tokens a step it would commit; nothing is timed."""
    given = options.settings(set_)
    request = TrainRequest(
        method=method,
        target=target,
        dataset=dataset,
        columns=columns,
        template=template,
        documents=documents,
        response_tokens=response_tokens,
        eval_prompts=prompts,
        eval_new_tokens=new_tokens,
        max_length=max_length,
        micro_batch=micro_batch,
        seed=seed,
        dtype=cast("Dtype | None", dtype),
        quantisation=quantisation,
        device=device,
        threads=threads,
        settings=tuple(item for item in given if item.method == method),
        data=tuple(data or ()),
        methods_dirs=tuple(cast("list[Path]", methods_dir or [])),
    )
    # 3 s of torch and accelerate, after everything that can be refused without them.
    from specbench.training.measure import evaluate as measure

    with open_train_progress() as progress:
        found = measure(request, progress, wrapped=tuple(item for item in given if item.method != method))
    for line in found.notes:
        note(visible(line))
    if as_json:
        show_json(found.as_dict())
        return
    if found.num_labels:
        ranks = len(found.accuracy[0])
        show_table(
            [
                *(Column("depth", right=True), Column("labels", right=True), Column("loss", right=True)),
                *(Column(f"top-{rank + 1}", right=True) for rank in range(ranks)),
            ],
            [
                (str(depth + 1), f"{labels:,}", f"{loss:.4f}", *(f"{share:.3f}" for share in hits))
                for depth, (labels, loss, hits) in enumerate(
                    zip(found.num_labels, found.loss, found.accuracy, strict=True)
                )
            ],
        )
        show(f"a greedy chain would have {found.expected_accepted:.3f} tokens a step accepted, by the labels")
    if found.acceptance_length is not None:
        show(
            f"simulated acceptance length {found.acceptance_length:.3f} on {found.num_prompts} prompts "
            f"({found.num_steps:,} steps, {found.num_nodes / max(found.num_steps, 1):.1f} nodes each), bonus included"
        )
