"""What a job came to, as facts: throughput, verdict, history, documents."""
