"""The parts of scripts/make_tiny.py, which makes the weights of the tiny suite."""
