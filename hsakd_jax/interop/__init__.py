"""PyTorch checkpoints in, exported files out."""
