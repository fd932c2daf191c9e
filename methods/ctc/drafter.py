"""The CTC drafter of a checkpoint, in its form: parallel frames (nar) or a chain of states (eagle)."""

from __future__ import annotations

from typing import cast

from methods.ctc.architecture import Architecture
from methods.ctc.drafting import CtcDrafter
from methods.ctc.eagle_drafter import EagleDrafter
from methods.ctc.module import CtcNetwork
from methods.ctc.nar_drafter import NarDrafter
from specbench import checkpoint
from specbench.linear import lay_out_linears
from specbench.method import Drafter, Options, TargetView

NAME = "ctc"


def make(network: CtcNetwork, target: TargetView, options: Options) -> CtcDrafter:
    """The drafter of the network's form."""
    return (NarDrafter if network.architecture.form == "nar" else EagleDrafter)(network, target, options)


def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
    """Raises EnvironmentFailed (no or damaged weights) and UsageError (made for another target; options of the other
    form)."""
    folder = checkpoint.resolve(cast("str", options["weights"]), NAME)
    found = checkpoint.load(folder, method=NAME)
    checkpoint.check_fits(found, target, folder=folder)
    network = CtcNetwork(Architecture.read(found.architecture, where=str(folder / checkpoint.CONFIG)))
    checkpoint.load_state(network, found.state, folder=folder)
    checkpoint.as_dtype(network, target)
    lay_out_linears(network)
    drafter = make(network, target, options)
    if isinstance(drafter, EagleDrafter):
        drafter.lay_out()
    drafter.weights_hash, drafter.trained_on = found.weights_hash, found.target.weights_hash
    drafter.trained_quantisation = found.target.quantisation
    return drafter
