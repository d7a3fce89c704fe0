"""`python -m jobs.dispatcher start --storage DIR`, on the head: starts the dispatcher, or finds it running."""

from jobs.dispatch.start import app

if __name__ == "__main__":
    app()
