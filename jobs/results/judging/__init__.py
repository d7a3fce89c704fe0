"""Who wins and how sure that is: what is judged, the noise in it, the tests, and what looking costs."""
