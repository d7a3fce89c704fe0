"""What a cell needs of a device and of FLOPs, before anything runs."""
