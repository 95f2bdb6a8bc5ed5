"""Annotated data, from files in many formats to token ids: reading, conversations, chat templates, pairs, packed rows.

Nothing is guessed: what cannot be read or rendered exactly is refused, with file, row and remedy. A new format is an
entry in `formats.FORMATS`, a new file type one in `rows.READERS`. Stores of users hold files with `pairs.SCHEMA`.
"""
