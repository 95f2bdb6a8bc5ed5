"""Models: loaded and verified, proved right for packed rows, scored; attention and kernels."""
