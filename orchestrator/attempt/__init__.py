"""One attempt on a gang of Ray Train workers, and why it ended."""
