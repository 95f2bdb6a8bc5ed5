"""The loop as data: the spec and the metrics of every stage, which stage needs what, and what MLflow keeps of them.

Light to import: flows build specs without torch. Only `lineage`, `logged` and `measured`, which serve the stage
`register`, import MLflow or read tables. The fields of a spec decide its key, which every store and MLflow
hold: a field that is added or renamed here makes finished work run again.
"""
