"""Results of the experiments over many seeds: read by the pages, made by `python -m mmcl_book`."""

from mmcl_book.records.reading import (
    Interval,
    Record,
    fetch_record,
    interval,
    load_record,
    next_run,
    read_record,
)

__all__ = [
    "Interval",
    "Record",
    "fetch_record",
    "interval",
    "load_record",
    "next_run",
    "read_record",
]
