"""A causal language model with a preallocated cache and tree attention. Targets and draft models are both one."""

import logging

# Where torchao is installed transformers imports it for every model, and it then complains of CUDA extensions on
# machines without CUDA, and of its own enums: ten lines before a run says its first word.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
