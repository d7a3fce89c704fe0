"""The held-out items by themselves: what each backbone came to on each, and by the columns of the data."""
