"""Training: the trainer on packed rows, groups of responses, optimisers, and what an iteration moved."""
