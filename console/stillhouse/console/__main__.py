"""`python -m stillhouse.console` is `stillhouse`."""

from stillhouse.console import main

main()
