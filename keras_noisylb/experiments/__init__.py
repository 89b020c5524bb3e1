"""The paper's experiments and users' own: recipes and options in, records, tables, figures out."""
