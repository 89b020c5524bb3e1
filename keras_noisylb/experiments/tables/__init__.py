"""Records made into tables."""
