"""What serves failures: the reviewer, the store of dead letters, and the operators' commands."""
