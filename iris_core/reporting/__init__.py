"""What people read: the summary table, the report's page and figures, the comparison of objectives.

It only reads the store, also one that an earlier version wrote. So a value that old manifests lack is optional here.
Of the stages only `compare` uses it; flows and the `iris` command use the rest.
"""
