"""How a stage runs: its command line, the process that launches it, ranks, and that no process outlives its parent."""
