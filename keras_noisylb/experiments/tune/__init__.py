"""What a recipe leaves open, searched on held-out data."""
