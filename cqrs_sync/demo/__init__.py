"""The demo: `meetings` is the example, `run` plays and counts it, `picture` draws it, `command` is the command line."""
