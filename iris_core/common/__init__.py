"""What every other sub-package uses: errors, digests, atomic files, strict models, intervals, redaction, progress.

Imports no other sub-package. Keys in existing stores depend on the form of a digest and of a sealed file: do not change
them.
"""
