"""vlmprobe's attention mass (``AttentionProfile``), a group a position, for ``gatelens bench``.

``pip install --no-deps vlmprobe==1.0.1`` beside gatelens: it asks for an older transformers, which this kernel does not
use. Patterns come from gatelens, as vlmprobe has no adapter for Chameleon.
"""

import torch
from vlmprobe.attention import AttentionProfile


def method(model, task):
    """The share of the answering position's attention that each position gets, by layer."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(task.inputs, names_filter=names)
    n_pos = task.inputs.tokens.n_pos
    groups = {str(p): task.only(p) for p in range(n_pos)}
    found = []
    for name in names:
        profile = AttentionProfile().run(cache[name].float(), groups=groups, query_mask=task.only(n_pos - 1))
        found.append(profile.tensors["group_mass"][:, :, -1].mean((0, 1)))
    return torch.stack(found)
