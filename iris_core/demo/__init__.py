"""What `make demo` needs in addition to the pipeline: a chat model (`model`) and an annotated set (`house_style`).

The model is converted from a package of PyPI; the set is generated from a seed, with the sentences of `phrases`. A
changed sentence changes the set, and with it every measured result of the demo.
"""
