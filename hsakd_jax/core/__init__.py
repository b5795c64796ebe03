"""What every part uses: errors, files, console, devices, preemption, XLA settings."""
