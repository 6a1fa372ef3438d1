"""Errors, files, the hub, the command line, devices and processes. Imports nothing of this project."""
