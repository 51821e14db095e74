"""Data of the console's pages, read from files and stores. No module here imports Ray or torch."""
