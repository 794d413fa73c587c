"""Two and more runs compared on the same cases."""
