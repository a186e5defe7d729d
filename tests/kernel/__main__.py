"""Run the lab's packet tests with the kernel datapath of Open vSwitch, in an emulated machine.

Usage: python -m tests.kernel [--help] [PYTEST_ARGUMENT ...]        (as root)

Runs pytest in the machine of lab/guest.py, on labs whose nodes have `datapath_type=system`. Users
run this datapath, but this machine's kernel may not have it. Without arguments it runs the tests of
TESTS below. The exit code is that of pytest, or 3 if the machine panics, hangs or does not end.
JUnit's XML and the console are in build/kernel-test.out/.
"""

import sys
from collections.abc import Sequence

from lab import LabError
from lab.guest import RESULTS, Guest

TESTS = (
    "tests/lab/test_traffic.py",
    "tests/lab/test_restart.py",
    "tests/lab/test_flows.py",
    "tests/lab/test_services.py",
)
BROKEN = 3
"""The exit code if there are no test results; pytest itself uses 1 and 2."""


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in {"-h", "--help"}:
        print(__doc__.strip())
        return 0
    guest = Guest("kernel-test", [])
    pytest = [".venv/bin/pytest", "-v", "-p", "no:cacheprovider"]
    # No single test takes as long as the longest silence.
    pytest += [f"--timeout={guest.longest_silence}", f"--junitxml={RESULTS}/junit.xml"]
    try:
        return Guest("kernel-test", [*pytest, *(arguments or TESTS)]).run()
    except (LabError, OSError) as failure:
        print(f"kernel-test: {failure}", file=sys.stderr)
        return BROKEN
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
