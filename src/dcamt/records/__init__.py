"""What is written to disk and read back: the shape of each file, and readers that check it."""
