"""Results of the experiments over many seeds: read by the pages, made by `python -m mmcl_book`."""

from mmcl_book.records.reading import (
    Interval,
    Record,
    RecordError,
    fetch_record,
    interval,
    load_record,
    read_record,
)

__all__ = [
    "Interval",
    "Record",
    "RecordError",
    "fetch_record",
    "interval",
    "load_record",
    "read_record",
]
