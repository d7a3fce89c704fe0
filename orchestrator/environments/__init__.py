"""What a robot does, tried in simulators: the only door to gymnasium, and to what is built on it."""
