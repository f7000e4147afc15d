"""The HTTP front-end of known."""
