"""Who trains where: the policy, the queue as a state machine, and its store."""
