"""`python -m clipfuse` is the command line."""

from clipfuse.cli.main import main

main()
