"""The open-loop load generator: what is sent when, what came back, and whether the books agree."""
