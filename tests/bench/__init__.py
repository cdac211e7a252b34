"""The benchmarks behind `sealstream bench`: what is measured, on what, against what.

Rules of all of them: a figure stands beside a baseline that was measured in the same run, in turns
with it, because machines are noisy; medians and ratios, never a single time; no network but
loopback. `README.md` holds the figures that were measured.
"""
