"""`python -m controller`."""

from controller.main import main

main(prog_name="controller")
