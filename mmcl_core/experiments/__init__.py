"""What the book trains, and how: used live by its chapters, and by `python -m mmcl_core`."""
