"""Datasets: loading, sampling, streaming, augmentation, TFDS builders."""
