"""`backbone decide SPEC`, and the same as an entry point: `ray job submit -- python -m jobs.decide SPEC`."""

from jobs.cli.app import run_command

if __name__ == "__main__":
    run_command("decide")
