"""Multimodal contrastive learning: the library under the book *Closing the Gap*.

Floors, from below: `data`; `encoders`, `losses`, `sparsemax`, `distributed`; `grounding`;
`methods`; `checkpoints`; `training`, `evaluation`; `figures`, `widgets`, `claims`, `experiments`;
`__main__`. A file imports only from floors below its own.
`import mmcl_core` alone loads none of them, so it costs nothing and pulls in no plotting library.
"""

__version__ = "0.1.0"
