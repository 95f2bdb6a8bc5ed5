"""What every other room builds on: errors, digests, atomic files, strict models, intervals. It imports no other room."""
