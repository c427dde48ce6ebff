"""The report's page: what a run holds, its figure, its sections, and the HTML template that they go into."""
