"""`python -m pipelines run ...`: the command `rlad` where nothing is installed but the working directory."""

from pipelines.cli.main import main

main()
