"""Speed benchmarks, and PyTorch networks to compare with."""
