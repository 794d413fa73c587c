"""What is made of features before they are stored: checks, graphs, regions, several magnifications."""
