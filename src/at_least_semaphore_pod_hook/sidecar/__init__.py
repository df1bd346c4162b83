"""What runs in every pod: renews the permit, gives it back."""
