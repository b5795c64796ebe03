"""Shared foundations: errors, files, the console, devices and processes, stop signals, settings of the process."""
