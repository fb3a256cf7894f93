"""Whole jobs, wired from the rooms above; nothing else wires them."""
