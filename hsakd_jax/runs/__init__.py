"""Run directories: config, checkpoints, restored networks."""
