"""Takes the place of the real package."""
