"""The row engine: losses are described once, executors schedule them.

Imports run one way: losses -> engine -> compiled library. Nothing in here knows a loss by name.
"""
