"""The outside world, one foreign library per file, behind the protocols of `payflow.ports`."""
