"""What people read: the summary table, the report's page and figures, the comparison, the plan of a run's resources.

It only reads the store, also one that an earlier version wrote. So a value that old manifests lack is optional here.
Only `resources` reads a recipe instead, before anything runs. Of the stages only `compare` uses this sub-package; flows
and the `iris` command use the rest.
"""
