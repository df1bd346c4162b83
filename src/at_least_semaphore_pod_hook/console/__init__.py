"""What people run by hand: status and release."""
