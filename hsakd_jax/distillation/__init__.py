"""Losses, objectives and other distillation methods."""
