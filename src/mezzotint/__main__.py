"""`python -m mezzotint`."""

from .cli import main

main()
