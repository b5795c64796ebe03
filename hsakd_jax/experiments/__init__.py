"""Recipes and the pipeline of runs that a config describes."""
