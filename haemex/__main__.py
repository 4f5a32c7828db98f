"""`python -m haemex` is the command `haemex`."""

import sys

from haemex.command_line import main

if __name__ == "__main__":
    sys.exit(main())
