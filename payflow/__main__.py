"""`python -m payflow` is the same program as the installed script `payflow`."""

from payflow.cli import main

if __name__ == "__main__":
    main(prog_name="payflow")
