"""Notebooks: a spec in any shape, a job that outlives its notebook, results as data frames and as a page."""
