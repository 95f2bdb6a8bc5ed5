"""The loop as data: the spec of every stage, which stage needs what, and what a version says about where it comes from.

Light to import: flows build specs without torch.
"""
