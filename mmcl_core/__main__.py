"""Train a method, measure it, search with it: `python -m mmcl_core --help`.

Under `torchrun`, several processes train as one.
"""

import sys

from mmcl_core.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
