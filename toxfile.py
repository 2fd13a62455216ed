"""Tells tox.ini which Python runs tox, so that one environment can have another one made."""

import os
import sys

os.environ["TOX_PYTHON"] = sys.executable
