"""What backs the numbers: the study of single changes, the report, and the execution of the notebooks."""
