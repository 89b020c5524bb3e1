"""Pictures, and the numbers behind them."""
