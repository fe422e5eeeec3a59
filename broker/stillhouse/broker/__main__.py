"""`python -m stillhouse.broker`."""

from stillhouse.broker.server import main

raise SystemExit(main())
