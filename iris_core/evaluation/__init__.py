"""The ten benchmarks by lm-evaluation-harness with shared prefixes, held-out answers, a mirror and a miniature of the data."""
