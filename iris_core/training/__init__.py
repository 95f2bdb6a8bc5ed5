"""Training: pairs to token groups, the trainer on packed rows, optimisers, checkpoints, and what an iteration changed.

The stage `iris_core.train` puts these together. Other rooms import the modules by name.
"""
