"""``python -m cloudshift_lab.agent <job file>``."""

import sys

from cloudshift_lab.agent.main import main

sys.exit(main(sys.argv[1:]))
