"""``python -m nas.cli``: how processes of a command start each other."""

from nas.cli import main

if __name__ == "__main__":
    main()
