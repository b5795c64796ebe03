"""Training of one network: optimizer, step, loop, tracking."""
