"""What a model says: the format learnt from its template, the parser of its output, and constraints on it."""
