"""How a stage runs: its command line, its launch as a subprocess, its ranks, and how processes end with their parent.

`supervision` decides that no process outlives its parent; a change there is followed by `python -m tests.faults`.
"""
