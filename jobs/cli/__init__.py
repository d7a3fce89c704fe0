"""The command line: the only room that prints. `app` has the commands of a job, `queue` and `cluster` the others."""
