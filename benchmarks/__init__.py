"""Measurements behind the figures of the README, run from the root: `python -m benchmarks.NAME`; results/ has them."""
