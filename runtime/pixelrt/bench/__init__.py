"""What a bundle costs here: time by stage, memory, energy; and whether two measurements differ.

See docs/benchmarking.md.
"""
