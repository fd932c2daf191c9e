"""How a CTC drafter learns: `build` of the recipe of either form."""

from __future__ import annotations

from typing import cast

from methods.ctc.architecture import (
    Architecture,
    FirstFrame,
    Form,
    FrameLoss,
    ModuleKind,
    heads_of,
    intermediate_of,
)
from methods.ctc.eagle_recipe import EagleRecipe, EagleWeights
from methods.ctc.module import CtcNetwork
from methods.ctc.nar_recipe import NarRecipe, NarWeights
from specbench.blocks import HeadKind
from specbench.errors import UsageError
from specbench.method import Options, TargetView
from specbench.recipe import Recipe


def build(options: Options, target: TargetView) -> Recipe:
    """A fresh recipe with random weights (torch's global generator). Raises UsageError where options contradict each
    other or the target."""
    form, loss = cast("Form", options["form"]), cast("FrameLoss", options["loss"])
    labels = cast("int", options["labels"])
    frames = cast("int", options["frames"])
    is_ce = form == "nar" and loss == "ce"
    _refuse(options, form=form, is_ce=is_ce)
    trimmed = cast("int", options["vocabulary"])
    if trimmed and trimmed < len(target.stop_ids) + 1:
        raise UsageError(
            f"a vocabulary of {trimmed} has no room beside the {len(target.stop_ids)} stop tokens",
            where="ctc.vocabulary",
            try_="ctc.vocabulary=0 for all tokens, or some thousands",
        )
    heads, kv_heads = heads_of(target, heads=cast("int", options["heads"]), kv_heads=cast("int", options["kv_heads"]))
    num_frames = frames or (labels if is_ce else 2 * labels)
    architecture = Architecture(
        form=form,
        module=cast("ModuleKind", options["module"]),
        hidden_size=target.hidden_size,
        embed_size=target.embed_width,
        vocab_size=target.vocab_size,
        heads=heads,
        kv_heads=kv_heads,
        intermediate_size=intermediate_of(target, cast("int", options["intermediate"])),
        fc_bias=cast("bool", options["fc_bias"]),
        frames=num_frames if form == "nar" else 0,
        labels=labels if form == "nar" else 0,
        loss=loss if form == "nar" else "ctc",
        causal_frames=cast("bool", options["causal_frames"]),
        first_frame=cast("FirstFrame", options["first_frame"]) if form == "nar" else "own",
        head=cast("HeadKind", options["head"]),
        trimmed=trimmed if trimmed < target.vocab_size else 0,
    )
    network = CtcNetwork(architecture, blank_bias=cast("float", options["blank_bias"])).to(target.device)
    network.borrowed_head(target)  # refuses a wrong width before any data is read
    lambda_reg = cast("float", options["lambda_reg"])
    only_generated = cast("bool", options["only_generated"])
    if form == "eagle":
        return EagleRecipe(
            network,
            target,
            EagleWeights(
                reg=1.0 if lambda_reg < 0 else lambda_reg,
                soft=cast("float", options["lambda_soft"]),
                ctc=cast("float", options["lambda_ctc"]),
                noise=cast("float", options["noise"]),
                labels=labels,
                frames=num_frames,
                blank_id=cast("int", options["blank_id"]),
            ),
            only_generated=only_generated,
        )
    return NarRecipe(
        network,
        target,
        NarWeights(
            first=cast("float", options["lambda_first"]),
            reg=max(lambda_reg, 0.0),
            text=cast("float", options["lambda_text"]),
            prefix_weighted=cast("bool", options["prefix_weighted"]),
            max_anchors=cast("int", options["anchors"]),
        ),
        only_generated=only_generated,
    )


def _refuse(options: Options, *, form: Form, is_ce: bool) -> None:
    """What makes no sense together."""
    labels, frames = cast("int", options["labels"]), cast("int", options["frames"])
    wrong: tuple[bool, str, str, str] | None = next(
        (
            each
            for each in (
                (is_ce and frames not in (0, labels), f"under loss ce frame i is asked for label i, but there are "
                 f"{frames} frames and {labels} labels", "ctc.frames", f"ctc.frames={labels}, or 0"),
                (is_ce and bool(options["prefix_weighted"]), "prefix_weighted is of the CTC loss; loss is ce",
                 "ctc.prefix_weighted", "--depth-decay, which weighs depths under every loss"),
                (form == "eagle" and options["loss"] == "ce", "loss ce is the ablation of form nar; eagle predicts one "
                 "token at a time and has none", "ctc.loss", "ctc.lambda_ctc=0 trains eagle without its CTC term"),
                (options["first_frame"] == "anchor" and options["module"] == "linear",
                 "linear frames are maps of the anchor, none of them is the anchor's own output",
                 "ctc.first_frame", "ctc.first_frame=own"),
                (bool(options["lambda_text"]) and (form == "eagle" or options["module"] == "linear"),
                 "lambda_text teaches nar's layer from the text; eagle learns from nothing else, linear has no layer",
                 "ctc.lambda_text", "ctc.lambda_text=0"),
                (form == "eagle" and options["head"] == "own", "form eagle reads with the target's head",
                 "ctc.head", "ctc.head=target"),
                (form == "eagle" and frames != 0 and frames < labels, f"{frames} frames cannot say {labels} labels",
                 "ctc.frames", "ctc.frames=0 for two per label"),
                (form == "eagle" and not float(options["lambda_soft"]) and not float(options["lambda_reg"]),
                 "lambda_reg and lambda_soft are both 0: nothing would be learnt", "ctc.lambda_soft",
                 "ctc.lambda_soft=0.1"),
            )
            if each[0]
        ),
        None,
    )  # fmt: skip
    if wrong is not None:
        raise UsageError(wrong[1], where=wrong[2], try_=wrong[3])
