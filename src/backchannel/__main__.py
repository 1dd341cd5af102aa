"""``python -m backchannel`` is the ``backchannel`` command."""

from backchannel.cli.main import main

if __name__ == "__main__":
    main()
