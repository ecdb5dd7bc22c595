"""`python -m vch` is the same as the program `vch`."""

from vch.cli import main

main()
