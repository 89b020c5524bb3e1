"""What commands and experiments share: options, recipes and sizes as plain data, names, tables.

Imports no Keras.
"""
