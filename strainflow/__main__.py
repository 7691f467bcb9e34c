"""`python -m strainflow VERB`."""

import sys

from strainflow import main

if __name__ == "__main__":  # a process that Python starts afresh imports this, too
    sys.exit(main())
