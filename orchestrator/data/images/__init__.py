"""Images of examples: read and checked where a job is planned, rendered once to the squares that backbones look at."""
