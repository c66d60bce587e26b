"""What makes the pages of *Closing the Gap*: experiments, their records, figures, widgets, claims.

Whoever uses the library needs none of it: `mmcl_core` never imports it.
Floors, from below: `methods`; `experiments`, `records`; `figures`, `widgets`, `claims`, `__main__`.
"""
