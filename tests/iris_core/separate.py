"""The slow twin of packed rows."""

import torch


def separate(model, group):
    """The slow twin: each response in a forward of its own, full logits."""
    sums = []
    for response, first in zip(group.responses, group.scored_from or [0] * len(group.responses), strict=True):
        ids = torch.tensor([[*group.prompt, *response]])
        logprobs = model(ids).logits[0].log_softmax(-1)
        start = len(group.prompt) - 1
        sums.append(
            sum((logprobs[start + i, token] for i, token in enumerate(response) if i >= first), torch.zeros(()))
        )
    return torch.stack(sums)
