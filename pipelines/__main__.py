"""Run the command `rlad` from a working directory, without installation: `python -m pipelines run ...`."""

from pipelines.cli.main import main

main()
