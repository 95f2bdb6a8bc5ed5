"""How much of the logits the log-prob kernel computes at once; light to import, for the plan of a run's memory."""

CPU_TILE = (512, 2048)  # tokens and vocabulary entries: 4 MB of logits
GPU_TILE = (4096, 16384)  # large enough to occupy a GPU
