"""Annotated data from every format to token ids: reading, conversations, chat templates, checked pairs, packed rows.

What cannot be read or rendered exactly is refused with file, row and remedy; nothing is guessed.
"""
