"""What is demanded of the library's speed, and whether it is met: `python benchmarks/bench.py`."""
