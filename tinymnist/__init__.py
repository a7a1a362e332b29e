"""The parts behind `utils.py`, one job per file."""
