"""Golden cases of methods that compare relations."""

CASES = {}
