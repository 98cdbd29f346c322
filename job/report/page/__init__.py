"""The page of a run: its numbers as JSON, and the HTML file that shows them."""
