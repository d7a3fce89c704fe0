"""`python -m jobs.cli`, the same as `backbone`."""

from jobs.cli.app import main

if __name__ == "__main__":
    main()
