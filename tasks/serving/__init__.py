"""The model server: every model in use, behind HTTP, from one process.

It knows neither Git nor Prefect: `.mill/live.json` says which folder of which version answers for which model, and
whoever promotes replaces that file.
"""
