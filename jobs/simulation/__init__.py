"""The policy of the queue on a described cluster: traces, figures, page."""
