"""Errors, files, the hub, the command line, devices and processes. Imports no other folder of this project."""
