"""`python -m estserver` is the command `estserver`."""

from estserver.cli import main

main()
