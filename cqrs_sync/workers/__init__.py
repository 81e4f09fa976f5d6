"""Long-running work, one loop a process."""
