"""The cluster's service: the dispatcher around the queue, its clocks, and how a laptop asks it."""
