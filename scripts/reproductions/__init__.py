"""What `reproduce.py` reproduces: a module a figure, each with a `run` from arguments to an `Outcome`."""
