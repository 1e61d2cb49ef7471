"""easyroutine's knockout (``intervention_attn_mat_hook``), position by position, for ``gatelens bench``.

``pip install --no-deps easyroutine==1.1.5`` and ``pip install python-dotenv einops rich pyyaml`` beside gatelens: its
own HookedModel takes checkpoints of the hub by a fixed list of names, so its hook function runs on gatelens' patterns.
"""

import torch
from easyroutine.interpretability.hooks import intervention_attn_mat_hook


def method(model, task):
    """The log-probability lost when nothing after the picture reads a position: entries 0 after the softmax."""
    n_pos, heads = task.inputs.tokens.n_pos, range(model.cfg.n_heads)
    after = max(p for p in task.candidates if bool(task.inputs.tokens.mask("image")[0, p])) + 1
    rows = torch.arange(len(task.labels))

    def right(hooks):
        logits = model.run_with_hooks(task.inputs, fwd_hooks=hooks)[:, -1]
        return float(logits.log_softmax(-1)[rows, task.labels].mean())

    def cut(place):
        queries = [p for p in range(after, n_pos) if p != place]

        def hook(pattern, hook):
            pattern = pattern.clone()
            for head in heads:
                pattern = intervention_attn_mat_hook(None, (), {}, pattern, queries, [place], head, 0.0)
            return pattern

        return [(f"blocks.{layer}.attn.hook_pattern", hook) for layer in range(model.cfg.n_layers)]

    with torch.no_grad():
        clean = right([])
        scores = torch.zeros(n_pos)
        for place in task.candidates:
            scores[place] = clean - right(cut(place))
    return scores
