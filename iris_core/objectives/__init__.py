"""The mathematics of self-play: losses, weights and normaliser, the gap D̂, and the order α that follows from it.

Pure functions of log-probs with flat arguments; papers and equations are named. `losses` needs torch, `gap` and `order` do not.
"""
