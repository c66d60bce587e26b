"""The command line, `python -m mmcl_core`: what it offers, and what a run is."""
