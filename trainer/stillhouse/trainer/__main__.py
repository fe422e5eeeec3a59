"""`python -m stillhouse.trainer`."""

import sys

from stillhouse.trainer.process import main

sys.exit(main())
