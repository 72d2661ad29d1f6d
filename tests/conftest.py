"""One thread for each of the processes that pytest-xdist runs side by side, and for those that tests start."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
