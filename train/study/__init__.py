"""The tables of the paper as one command: a scale, one small file a row, and a report of what they show."""
