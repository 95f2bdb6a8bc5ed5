"""How a stage runs: its command line, its launch, its ranks and workers, and how processes end with their parent.

    stage          the command line that every stage shares
    launch         starts a stage from another process, and waits for it
    agent          torchrun's agent, for a stage on several ranks
    distributed    what ranks ask and exchange
    items          a stage of items (shards, benchmarks), shared by workers
    item_worker    one worker: a process with an engine
    devices        how many processes a machine has, and their GPUs
    supervision    no process outlives its parent; a change there is followed by `python -m tests.faults`

The others are small parts of these.
"""
