"""The Prefect flows: the loop (`iris`), one iteration of it, objectives compared (`compare`), evaluation alone.

`checks` and `artifacts` are what they share. Without mathematics and without torch.
"""
