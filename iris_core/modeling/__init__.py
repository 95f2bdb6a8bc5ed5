"""Models: loading and verification, which rows a class computes right, scoring, attention, kernels and patches.

What replaces third-party code belongs in `patches`, our own numerics in `kernels` and `attention`. Other rooms import
the modules by name: they are slow to import, and not every stage needs them.
"""
