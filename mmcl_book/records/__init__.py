"""Results of the experiments over many seeds: read by the pages, made by `python -m mmcl_book`."""

from mmcl_book.records.comparing import Comparison, compare
from mmcl_book.records.reading import (
    Interval,
    Record,
    RecordError,
    fetch_record,
    interval,
    load_record,
    read_record,
)
from mmcl_book.records.weights import fetch_weights, read_weights

__all__ = [
    "Comparison",
    "Interval",
    "Record",
    "RecordError",
    "compare",
    "fetch_record",
    "fetch_weights",
    "interval",
    "load_record",
    "read_record",
    "read_weights",
]
