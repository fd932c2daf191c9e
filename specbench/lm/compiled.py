"""The unmodified transformers forward through torch.compile: pointwise work fused, cache and attention as they are.

A compiled forward must not see what changes from step to step in Python: lengths, masks, slots. So the compiled decoder
is handed a cache that keeps nothing, and our attention, when it is traced, is one opaque operator, `specbench::attend`:
at run time it writes keys and values into the real cache and attends as the forward under way says.

B rows, M slots.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from specbench import paths
from specbench.lm import attention, facts
from specbench.lm.joint import JointLinear, joinable
from specbench.lm.taps import decoder_of, layers_of

_Function = Callable[..., Any]


@torch.library.custom_op("specbench::attend", mutates_args=())
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink: Tensor | None,
    name: str,
    layer: int,
    scaling: float,
    window: int,
    softcap: float,
) -> Tensor:
    """`attention.attend_cached` as an operator. sink: `s_aux`. window, softcap: 0 for none."""
    return attention.attend_cached(
        name,
        query,
        key,
        value,
        layer=layer,
        scaling=scaling,
        sliding_window=window or None,
        softcap=softcap or None,
        s_aux=sink,
    )


@attend.register_fake
def _attend_shape(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink: Tensor | None,
    name: str,
    layer: int,
    scaling: float,
    window: int,
    softcap: float,
) -> Tensor:
    num_rows, num_heads, num_slots, _ = query.shape
    return query.new_empty(num_rows, num_slots, num_heads, value.shape[3])


class _NoCache(Cache):
    """Hands keys and values on: `attend` puts them into the real cache."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0


class CompiledDecoder:
    """A model's decoder, compiled per shape (from the second number of slots on one graph serves all numbers).

    By layers: what one layer's forward is compiled to serves all layers of its kind, in a tenth of the time that the
    whole decoder takes; hooks on layers run as ever. Whole: what stands between layers is fused as well (a residual
    with the next norm), at the price of a compilation as long as the model is deep; hooks on its layers would be
    compiled in, so layers must not be tapped.

    Linear layers that read the same states become one product (`joint`): the first forward shows which they are. Their
    weights keep their values and, after `remove`, their new place.

    Only forwards with a cache are compiled, those that prefill and verify; texts read whole, as training reads them, go
    the old way. Hooks on the decoder itself run as ever. What torch.compile raises comes out of the first call of a
    shape.
    """

    def __init__(self, model: PreTrainedModel, *, is_whole: bool, backend: str = "inductor") -> None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(paths.cache_dir() / "compiled"))
        decoder = self._decoder = decoder_of(model)
        pieces = [] if is_whole else _pieces(model)
        for each in (decoder, *pieces):
            assert "forward" not in vars(each), f"{type(each).__name__} has a forward of somebody's in its place"
        # On a CPU weights are packed for the products they are in; the model keeps its own copy. Packed are those of
        # one layer: nothing that other layers could be served by.
        is_packed = is_whole and model.device.type == "cpu" and backend == "inductor"
        options: Any = {"fullgraph": True, "backend": backend, "options": {"freezing": True} if is_packed else None}
        self.is_whole = is_whole
        self._no_cache = _NoCache()
        self._is_under_way = False
        self._shapes: set[tuple[int, ...]] = set()
        self.compile_s = 0.0
        """Seconds spent in calls that met a shape for the first time."""
        self._plain: _Function = decoder.forward
        self._signature = inspect.signature(self._plain)
        parameters = self._signature.parameters.values()
        self._may_be_left = {each.name for each in parameters if each.default is None}
        self._compiled: _Function = self._plain
        self._replaced: dict[nn.Module, _Function] = {decoder: self._forward}
        """Modules with the forwards they have while this is installed."""
        self._device = model.device
        self._is_joined = is_packed
        if is_whole:
            self._compiled = torch.compile(decoder.forward, **options)
        else:
            _serve_all_layers()
            for piece in pieces:
                self._replaced[piece] = self._either(piece.forward, torch.compile(piece.forward, **options))
        self.install()

    def install(self) -> None:
        """Forwards go through the compiler, as from the beginning."""
        for module, forward in self._replaced.items():
            module.forward = forward

    def remove(self) -> None:
        """The decoder's forwards are its own."""
        for module in self._replaced:
            vars(module).pop("forward", None)

    def _either(self, plain: _Function, compiled: _Function) -> _Function:
        """A forward inside a compiled decoder's, and elsewhere."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            return (compiled if self._is_under_way else plain)(*args, **kwargs)

        return forward

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        # Some models (gpt2) call their decoder with arguments unnamed, all with some that are not there; calls of ours
        # name what they give. One call would be traced like another, but once more.
        kwargs = {**self._signature.bind_partial(*args).arguments, **kwargs}
        kwargs = {name: value for name, value in kwargs.items() if value is not None or name not in self._may_be_left}
        if kwargs.get("past_key_values") is None:
            return self._plain(**kwargs)
        shape = tuple(kwargs["input_ids"].shape)
        start = time.perf_counter()
        if not self._is_joined:
            # Keys and values are written again below, to the same slots.
            self._join(lambda: self._plain(**kwargs))
        self._is_under_way = True
        try:
            output = self._compiled(**{**kwargs, "past_key_values": self._no_cache})
        finally:
            self._is_under_way = False
        if shape not in self._shapes:
            self._shapes.add(shape)
            self.compile_s += time.perf_counter() - start
        return output

    def _join(self, run: Callable[[], object]) -> None:
        """run: a forward as it is."""
        self._is_joined = True
        for layers in joinable(self._decoder, run):
            product = JointLinear(layers)
            for index, layer in enumerate(layers):
                self._replaced[layer] = self._either(layer.forward, partial(product.part, index))
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # where the weights stood
        self.install()


def _pieces(model: PreTrainedModel) -> list[nn.Module]:
    """What is compiled by itself where not all is."""
    final_norm = facts.final_norm(model)
    return [*layers_of(model), *([] if final_norm is None else [final_norm])]


def _serve_all_layers() -> None:
    """For the whole process: a layer's number is a number to its code and no constant of it, or every layer would be
    compiled by itself; and the code that all layers share may have a version for every kind of layer and shape."""
    settings: Any = torch._dynamo.config
    settings.allow_unspec_int_on_nn_module = True
    settings.recompile_limit = max(settings.recompile_limit, 64)
