"""What people run on a cluster: comparisons and finetunes, their verdict and their report."""
