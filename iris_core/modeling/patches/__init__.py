"""Patches: everything that replaces third-party code at run time, one module each.

Each module says why, since which upstream version, and when it can go. Its test fails when upstream changes what is
replaced. A patch that need not last for the whole process is a context manager that restores.

Nothing is imported here: `imports` must run before any large library. What upstream offers as a setting is no patch:
dropout rates (`iris_core.modeling.dropout`), the attention interface (`iris_core.modeling.attention.interface`) and
`torch.compile` (`iris_core.modeling.kernels.compiled`).
"""
