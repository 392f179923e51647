"""`python -m validation`."""

from validation.cli import main

if __name__ == "__main__":
    main()
