"""What cells took in time and money, and what a plan would take."""
