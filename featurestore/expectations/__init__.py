"""What a table's values are expected to be: stated, kept with the table, and held against what is written."""
