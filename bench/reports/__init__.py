"""Records as tables, pages and plots, and two runs compared. Imports the harness alone."""
