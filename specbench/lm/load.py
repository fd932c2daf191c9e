"""A hub id, a folder or `demo` -> a CachedLM: dtype, device, attention, and what cannot be served refused by name.

safetensors only; remote code only when asked for by flag. The model class is transformers' own, unmodified.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from specbench import paths
from specbench.errors import EnvironmentFailed, UsageError, did_you_mean
from specbench.linear import lay_out_linears
from specbench.lm import attention, prequantised, quantise
from specbench.lm.cached_lm import CachedLM
from specbench.lm.quantised import full_precision_copy
from specbench.provenance import hash_weights
from specbench.quantisation import NONE

PROVEN = frozenset(
    {
        "llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt_neox", "phi3", "gemma", "gemma2", "gemma3_text", "opt",
        "olmo2", "starcoder2", "smollm3", "granite", "mixtral", "gpt_oss",
    }
)  # fmt: skip
"""Model types whose tree verification the tests hold against path-by-path full forwards; any other is self-checked at
load."""

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHORT = {
    "fp64": "float64",
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "half": "float16",
    "double": "float64",
}
_STATEFUL = frozenset({"linear_attention", "conv", "hybrid", "hybrid_sliding", "mamba", "mamba2", "recurrent"})
_PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention"})


def pick_device(name: str) -> torch.device:
    """`auto|cpu|cuda|cuda:N|mps` -> a device that exists. Raises EnvironmentFailed where it does not: never another
    one instead."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdigit())):
        raise UsageError(f"{name!r} is not a device", where="--device", try_="auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise EnvironmentFailed("no CUDA device is visible to torch", where=f"--device {name}", try_="--device cpu")
        number = int(index) if index else torch.cuda.current_device()
        if number >= torch.cuda.device_count():
            raise EnvironmentFailed(
                f"there is no {name}: torch sees {torch.cuda.device_count()} CUDA devices", try_="--device cuda"
            )
        return torch.device("cuda", number)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise EnvironmentFailed("no MPS device is available to torch", where="--device mps", try_="--device cpu")
    return torch.device(kind)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on CPU and MPS, bfloat16 on CUDA (float16 where the card lacks it); otherwise what was asked
    for."""
    name = _SHORT.get(name, name)
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if name not in DTYPES:
        known = did_you_mean(name, [*DTYPES, "auto"])
        raise UsageError(f"{name!r} is not a choice of --dtype", where="--dtype", try_=known)
    return DTYPES[name]


class PickedAttention(NamedTuple):
    """An implementation of `specbench.lm.attention`. note: what every row must say of it; '' where it is the usual
    one."""

    name: str
    note: str = ""


def pick_attention(
    name: str, *, device: torch.device, dtype: torch.dtype, config: PretrainedConfig | None = None
) -> PickedAttention:
    """`auto` is triton on CUDA where the kernel proves itself there (`kernel_check`), and otherwise sdpa, with the
    reason as a note; elsewhere it is sdpa. `plain` is the reference. config: the target's text config, which `auto` on
    CUDA needs. Raises UsageError, EnvironmentFailed.
    """
    known = {"auto": attention.SDPA, "sdpa": attention.SDPA, "plain": attention.PLAIN, "triton": attention.TRITON}
    if name not in known:
        nearest = did_you_mean(name, known)
        raise UsageError(f"{name!r} is not a choice of --attention", where="--attention", try_=nearest)
    if name == "triton":
        _check_triton(device, dtype)
    if name != "auto" or device.type != "cuda":
        return PickedAttention(known[name])
    why = _why_not_triton(device, dtype, config)
    return PickedAttention(attention.SDPA, f"attends through torch's SDPA: {why}") if why else _TRITON


_TRITON = PickedAttention(attention.TRITON)


def _why_not_triton(device: torch.device, dtype: torch.dtype, config: PretrainedConfig | None) -> str:
    """'' where the kernel is there and right."""
    assert config is not None, "the kernel is tried in the target's own shapes"
    if config.model_type not in PROVEN:
        # Layers may differ in their shapes, and its own self-check runs in another dtype than the one tried here.
        return f"the kernel was never tested with {config.model_type} (--attention triton takes it all the same)"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET is set, and Triton's interpreter is no kernel"
    from specbench.lm import kernel_check  # seconds of compiling, only where the kernel may be picked

    return kernel_check.why_wrong(config, device=device, dtype=dtype)


def _check_triton(device: torch.device, dtype: torch.dtype) -> None:
    """Raises UsageError or EnvironmentFailed."""
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not is_interpreted:
        raise UsageError(
            f"the Triton kernel runs on CUDA devices, not on {device}",
            where="--attention",
            try_="--attention sdpa, or TRITON_INTERPRET=1 to run the kernel in Triton's interpreter (very slow)",
        )
    if dtype == torch.float64:
        raise UsageError("the Triton kernel has no float64", where="--attention", try_="--attention sdpa")
    if importlib.util.find_spec("triton") is None:
        raise EnvironmentFailed("Triton is not installed", where="--attention triton", try_="pip install triton")


def resolve_folder(name: str) -> Path:
    """The folder a model name stands for: an embedded one, an existing folder, or a hub snapshot (downloaded if need
    be)."""
    if name in paths.DEMO_MODELS:
        return paths.DEMO_MODELS[name]
    folder = paths.expanded(name)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise EnvironmentFailed(f"no model folder at {name}", try_="give a folder with config.json, a hub id, or demo")
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise EnvironmentFailed(
            f"cannot fetch model {name!r}: {str(error).splitlines()[0]}",
            try_="check the id and the network, or give a local folder; `--target demo` needs neither",
        ) from error


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, or None where it has none."""
    folder = resolve_folder(name)
    if not any((folder / file).exists() for file in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise EnvironmentFailed(f"the tokenizer of {name!r} cannot be read: {error}", where=str(folder)) from error
    return tokenizer


def refuse_unsupported(config: PretrainedConfig, name: str) -> None:
    """Raises UsageError for architectures whose state cannot be rolled back after a rejected draft, with the reason."""
    if getattr(config, "is_encoder_decoder", False):
        raise _refusal(config, name, "is an encoder-decoder; specbench decodes decoder-only models")
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    model_class = _model_class(text)
    reason = ""
    if bool(getattr(model_class, "_is_stateful", False)) or kinds & _STATEFUL:
        reason = (
            "keeps a recurrent state (state-space or linear attention), "
            "which cannot be rolled back after a rejected draft"
        )
    elif "chunked_attention" in kinds or getattr(text, "attention_chunk_size", None):
        reason = "uses chunked attention, whose chunk borders tree positions would cross"
    elif kinds - _PLAIN_LAYERS or getattr(text, "index_topk", None):
        sparse = ", ".join(sorted(kinds - _PLAIN_LAYERS)) or "index_topk"
        reason = f"chooses which tokens to attend ({sparse}), which tree attention would ignore"
    elif getattr(text, "is_causal", True) is False or getattr(text, "use_bidirectional_attention", False):
        reason = "is not causal"
    elif (
        text.model_type == "moshi"
        and (text.sliding_window or text.max_position_embeddings) < text.max_position_embeddings
    ):
        reason = f"forgets what its window of {text.sliding_window} has passed in its own cache, but not in its forward"
    elif model_class is not None and not model_class._can_set_attn_implementation():
        reason = "computes attention in its own code, outside transformers' attention interface, and sees no tree mask"
    if reason:
        raise _refusal(text, name, reason)


def _refusal(config: PretrainedConfig, name: str, reason: str) -> UsageError:
    return UsageError(
        f"{name} (model type {config.model_type!r}) {reason}", try_="choose a decoder-only model with full attention"
    )


def _model_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The causal LM class transformers would build; None for remote code, which only `self_check` can judge."""
    mapping = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    found = mapping.get(type(config), None)
    return found[0] if isinstance(found, list | tuple) else found


def load_lm(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    attention_name: str = "auto",
    trust_remote_code: bool = False,
    is_split: bool = False,
    will_compile: bool = False,
    quantisation: str = NONE,
    quantisation_said_by: str = "--quantisation",
) -> CachedLM:
    """Load weights and tokenizer. Raises UsageError (unsupported), EnvironmentFailed (missing, pickled or damaged
    weights, a library that a quantisation needs).

    will_compile: `CachedLM.compile` follows.
    is_split: over the processes that torchrun started (`lm.parallel`). Only rank 0 returns; the others end the program
    when it ends. quantisation: one of `specbench.quantisation`; quantisation_said_by: the option that asked for it.
    """
    said_by = quantisation_said_by
    quantise.check_asked(quantisation, device=device, dtype=dtype, is_split=is_split, where=said_by)
    if is_split:
        from specbench.lm.parallel import check_is_first

        check_is_first()
    if device.type == "cuda" and device.index is not None:
        # Triton launches on the current device and CUDA graphs are captured there, whatever device tensors are on.
        torch.cuda.set_device(device)
    attention.leave_cudnn_out(device)
    attention.register()
    # A wrong word is refused before anything is read; `auto` must know the target first.
    pick_attention("sdpa" if attention_name == "auto" else attention_name, device=device, dtype=dtype)
    transformers.utils.logging.disable_progress_bar()  # stderr carries our narration
    folder = resolve_folder(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise EnvironmentFailed(
            f"{name!r} has no readable config.json: {str(error).splitlines()[0]}", where=str(folder)
        ) from error
    refuse_unsupported(config, name)
    picked = pick_attention(attention_name, device=device, dtype=dtype, config=config.get_text_config())
    carried = prequantised.carried_by(config)
    if carried is not None:
        scheme = prequantised.check_carried(
            carried, name=name, asked=quantisation, where=said_by, device=device, is_split=is_split
        )
        config.quantization_config = prequantised.steadied(carried)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
        if pickles:
            raise EnvironmentFailed(
                f"{name!r} has only pickled weights ({pickles[0]}), which can run code when read; "
                "specbench reads safetensors only",
                where=str(folder),
                try_="convert once in a place you trust: model.save_pretrained(DIR, safe_serialization=True)",
            )
        raise EnvironmentFailed(
            f"{name!r} has no *.safetensors", where=str(folder), try_="give a folder that holds the weights"
        )
    is_proven = config.get_text_config().model_type in PROVEN
    if not is_proven and carried is None:
        # At least float32, whatever the run's dtype: in 16 bits a wrong mask hides behind rounding. Costs a load of
        # its own.
        wide = torch.promote_types(dtype, torch.float32)
        probe = _load_model(folder, config, name=name, dtype=wide, attention_name=picked.name, remote=trust_remote_code)
        nn.Module.to(probe, device)
        _self_check(probe, name=name)
        del probe
    options = {"device_map": {"": device}} if carried is not None else {}
    options |= quantise.loading_options(quantisation, device=device, dtype=dtype)
    model = _load_model(
        folder,
        config,
        name=name,
        dtype=dtype,
        attention_name=picked.name,
        remote=trust_remote_code,
        options=_split_options() if is_split else options,
    )
    if carried is None:
        scheme = quantise.quantise(model, quantisation, device=device, where=said_by)
    else:
        prequantised.check_loaded(model, scheme, name=name)
        if not is_proven:
            _self_check(full_precision_copy(model), name=name)
    facts: dict[str, Any] = {
        "name": name,
        "tokenizer": load_tokenizer(name, trust_remote_code=trust_remote_code),
        "weights_hash": hash_weights(folder),
        "quantisation": scheme.name,
        "notes": (*scheme.notes, *([picked.note] if picked.note else [])),
        "is_capturable": scheme.is_capturable,
        "attention_asked": attention_name,
    }
    if is_split:
        from specbench.lm.parallel import lead_or_follow  # torch.distributed comes with it

        return lead_or_follow(model, device=device, facts=facts)
    nn.Module.to(model, device)  # in place; transformers' own .to() is wrapped and loses its types
    # Compiled products are laid out by the compiler; the head stays outside of it.
    lay_out_linears(model.get_output_embeddings() if will_compile else model)
    return CachedLM(model, **facts)


def _self_check(model: PreTrainedModel, *, name: str) -> None:
    """Raises UsageError."""
    from specbench.lm.self_check import self_check  # only for types no test has proved

    self_check(CachedLM(model, name=name))


def _split_options() -> dict[str, Any]:
    """How `from_pretrained` is asked for tensor parallelism: older versions of transformers take the plan itself."""
    try:
        from transformers.distributed import DistributedConfig  # type: ignore[attr-defined]
    except ImportError:
        return {"tp_plan": "auto"}
    fields = inspect.signature(DistributedConfig).parameters
    return {"distributed_config": DistributedConfig(tp_plan="auto")} if "tp_plan" in fields else {"tp_plan": "auto"}


def _load_model(
    folder: Path,
    config: PretrainedConfig,
    *,
    name: str,
    dtype: torch.dtype,
    attention_name: str,
    remote: bool,
    options: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """The weights, complete, on the CPU, or where `options` (of `from_pretrained`) put them: this process's share of
    them, or quantised ones, on their device. Raises EnvironmentFailed where they are damaged or lack a tensor."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=remote,
            attn_implementation=attention_name,
            output_loading_info=True,
            **(options or {}),
        )
    # ImportError: the library of a quantised checkpoint is there, but not in a version that transformers takes.
    except (OSError, ValueError, RuntimeError, SafetensorError, ImportError) as error:
        raise EnvironmentFailed(
            f"the weights of {name!r} cannot be read: {str(error).strip().splitlines()[0]}",
            where=str(folder),
            try_="download the folder again, or check its sha256 sums",
        ) from error
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise EnvironmentFailed(
            f"the weights of {name!r} lack {len(missing)} tensors that the model needs, {missing[0]!r} first",
            where=str(folder),
            try_="download the folder again: transformers would fill them with random numbers",
        )
    if dtype == torch.float64 and model._can_set_experts_implementation():
        # torch's grouped matrix product, transformers' default for mixtures of experts, has no float64.
        model.set_experts_implementation("eager")
    model.requires_grad_(False)
    return model
