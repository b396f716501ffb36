"""`python -m pixelrt.cli` is `pixelrt`."""

from pixelrt.cli import main

main(prog_name="pixelrt")
