"""The mathematics of self-play: losses, weights and normaliser, the gap D̂, and the order α that follows from it.

Pure functions of rewards with flat arguments; each names its paper, and its test has the arithmetic on paper. `losses`
needs torch; `gap` and `order` do not, because flows import them.
"""
