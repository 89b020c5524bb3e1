"""How large a batch pays for a user's model and data."""
