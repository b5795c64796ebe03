"""Golden cases of methods that compare features."""

CASES = {}
