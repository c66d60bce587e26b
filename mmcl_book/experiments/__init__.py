"""What the book trains, and how: used live by its chapters, and for its records."""
