"""Verifiers: whether a response is right, wrong, or neither can be said. Each runs in a process of its own.

    verdicts    what is asked and what is answered
    verifier    `open_verifier`: the processes, their time and their restarts
    worker      what runs in such a process, and its limits
    kinds       the module of a kind: `answer`, `math`, `json_schema`, `sql`, `command`
    normalize   numbers, dates and JSON in one spelling, for `answer`

A module of a kind has two functions: `check(settings)` finds what is missing, before anything heavy starts, and
`open_judge(settings)` gives the function that judges, in the verifier's process. Text of responses reaches no other
process but as data. Light to import: no torch.
"""
