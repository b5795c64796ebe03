"""Accuracy, predictions and classification with trained networks."""
