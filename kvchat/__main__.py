"""`python -m kvchat`."""

from kvchat.app.cli import main

if __name__ == "__main__":
    main()
