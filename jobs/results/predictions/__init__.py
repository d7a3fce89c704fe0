"""What scores would be after more training than anybody paid for yet."""
