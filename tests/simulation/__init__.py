"""The whole pipeline on virtual time under faults that one seed draws; `python -m tests.simulation --help`."""
