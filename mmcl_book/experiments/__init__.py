"""What the book trains, and how: used live by its chapters, and with many seeds by its records."""
