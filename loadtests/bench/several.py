"""Several commands as one peer: they start together and end together. `python -m loadtests.bench.several '[[…], […]]'`"""

import json
import os
import signal
import subprocess
import sys


def main() -> int:
    """The exit status of whichever ends first; the others are killed then, and all of them on SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processes = [subprocess.Popen(command) for command in json.loads(sys.argv[1])]
    try:
        pid, status = os.wait()
        print(f"{next(process for process in processes if process.pid == pid).args} ended", file=sys.stderr)
        return os.waitstatus_to_exitcode(status) or 1
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
