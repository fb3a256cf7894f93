"""Statistics of pools, streamed."""
