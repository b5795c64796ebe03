"""Finished runs as tables and as an HTML report, beside the published numbers."""
