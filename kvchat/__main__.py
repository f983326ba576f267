"""Where the program begins: `kvchat` and `python -m kvchat`."""

import os
import signal

# Threads that wait for each other sleep. By default they spin, and where they share a core with
# anybody else every product then takes a time slice (3 to 20 times slower, see docs/log.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Ctrl-C while the command line is imported ends the program without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from kvchat.machine.ranks import follower, follows  # noqa: E402


def main() -> None:
    """The program, or a rank beside the first one, which has the terminal."""
    if follows():
        os._exit(follower())  # what libraries say at their end is nobody's business
    from kvchat.cli.main import main as program

    program()


if __name__ == "__main__":
    main()
