"""What earlier comparisons trained, found by what it learned from, and copied."""
