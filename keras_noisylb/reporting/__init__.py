"""What the noise of a model will cost, before anything is trained."""
