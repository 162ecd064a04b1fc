"""The stages of the line: paths in, paths out. `python -m tasks STAGE MODEL` runs one."""
