"""Help for tests: contract suites for every socket, a recorder, pytest fixtures."""
