"""`python -m stillhouse.serving.student`."""

import sys

from stillhouse.serving.student.cli import main

sys.exit(main())
