"""What backs the numbers: the study of single changes, and the report that puts figures into the text."""
