"""Finished runs as tables and as an HTML report, together with the paper's numbers."""
