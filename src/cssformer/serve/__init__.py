"""A trained network behind a page for people and an endpoint for programs."""
