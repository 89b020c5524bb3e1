"""What is trained, as plain data: options, recipes and sizes. Imports no Keras."""
