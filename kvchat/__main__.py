"""Where the program begins: `kvchat` and `python -m kvchat`."""

import signal

# Ctrl-C while the command line is imported ends the program without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from kvchat.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
