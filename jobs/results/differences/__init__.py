"""What changed between two comparisons, finetunes or specs."""
