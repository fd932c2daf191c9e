"""A short proof at load time for architectures no test has proved: tree verification against plain full forwards."""

from __future__ import annotations

import torch

from specbench.errors import UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.lm.rounding import own_attention
from specbench.tree import from_lists

_PARENTS = [-1, -1, 0, 0, 2]


def path_by_path_logits(lm: CachedLM, prompt: list[int], tokens: list[int], parents: list[int]) -> torch.Tensor:
    """The oracle: one ordinary transformers forward (eager, no cache) per leaf -> (M, V), row 0 = after the root.

    prompt's last token is the root. A causal forward over a leaf's path gives the rows of all its ancestors.
    """
    rows: dict[int, torch.Tensor] = {}
    with own_attention(lm.model), torch.inference_mode():
        for leaf in sorted(set(range(len(tokens))) - set(parents)) or [-1]:
            nodes = _ancestors(leaf, parents)
            ids = torch.tensor([prompt + [tokens[node] for node in nodes]], device=lm.device)
            logits = lm.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
            rows.update(zip([-1, *nodes], logits, strict=True))
    return torch.stack([rows[node] for node in range(-1, len(tokens))])


def _ancestors(leaf: int, parents: list[int]) -> list[int]:
    """The nodes from the root's child to `leaf`."""
    nodes: list[int] = []
    while leaf >= 0:
        nodes.insert(0, leaf)
        leaf = parents[leaf]
    return nodes


def _num_prompt(lm: CachedLM) -> int:
    """Longer than every sliding window, where the model can hold that much: a window that never bites proves
    nothing."""
    names = ("sliding_window", "attention_window", "local_attention", "window_size")
    windows = [getattr(lm.config, name, None) for name in names]
    longest = max((window for window in windows if isinstance(window, int)), default=0)
    return max(min(max(24, longest + 8), (lm.context_length or 1 << 30) - 5), 2)


def largest_deviation(lm: CachedLM) -> tuple[float, float]:
    """(largest |logit difference|, largest |logit|) of a five-node tree verified behind a cached prompt, against the
    oracle."""
    num_prompt = _num_prompt(lm)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, lm.vocab_size, (num_prompt + 5,), generator=generator).tolist()
    prompt, tokens = ids[:num_prompt], ids[num_prompt:]
    tokens[1] = (tokens[0] + 1) % lm.vocab_size
    tokens[3] = (tokens[2] + 1) % lm.vocab_size
    lm.allocate(max_batch=1, max_len=num_prompt + 1, max_nodes=5)
    lm.begin(1)
    lm.prefill(0, torch.tensor(prompt[:-1], device=lm.device))
    tree = from_lists([tokens], [_PARENTS], device=lm.device)
    ours = lm.verify(torch.tensor([prompt[-1]], device=lm.device), tree).logits_BMV[0].double()
    oracle = path_by_path_logits(lm, prompt, tokens, _PARENTS).double()
    return float((ours - oracle).abs().max()), float(oracle.abs().max())


def self_check(lm: CachedLM) -> None:
    """Raises UsageError when this architecture's tree verification differs from its own plain forward beyond
    rounding."""
    try:
        difference, scale = largest_deviation(lm)
    # Code that no test has run with our cache and attention: whatever it raises means that it cannot be served.
    except Exception as error:
        raise UsageError(
            f"{lm.name} (model type {lm.config.model_type!r}) cannot be verified as a tree: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}",
            try_="choose a decoder-only model with full attention",
        ) from error
    # Rounding over the depth of a network: at most 10 eps of the largest logit on the proved families in float32.
    # The oracle's softmax is float32 in most of transformers' plain attentions, whatever the model computes in.
    allowed = 200 * max(torch.finfo(lm.dtype).eps, torch.finfo(torch.float32).eps) * max(scale, 1.0)
    if not difference <= allowed:
        raise UsageError(
            f"{lm.name} (model type {lm.config.model_type!r}) cannot be verified as a tree: "
            f"logits differ by {difference:.3g} from its plain forward (allowed {allowed:.3g})",
            try_="choose a decoder-only model with full attention",
        )
