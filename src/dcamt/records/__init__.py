"""What is written to disk and read back, each with its type."""
