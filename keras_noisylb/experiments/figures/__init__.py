"""Figures: for each a picture and the numbers behind it.

A figure is one file `figure*.py`. `make` and the command line find it there. It has:

- a first line "Figure NAME: what it shows.", for the help;
- `SIZES`: by the name of a preset, the figure's own numbers. A figure of the finished runs of
  `noisylb table` has none, and is computed anew whenever it is asked for;
- `MINUTES`: likewise, how long one seed takes, for the question before a long computation;
- `compute(setup, folder, say)`: the numbers, plain data, from a `FigureSetup`;
- `verdict(numbers)`: the claims of the paper, each by `style.claim`;
- `draw(numbers)`: a `matplotlib.figure.Figure`.
"""
