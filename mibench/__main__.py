"""`python -m mibench`."""

from mibench.cli import main

main()
