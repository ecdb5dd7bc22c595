"""A personality that serves nothing."""

import argparse

import fake_part


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-fd", type=int)
    options, _ = parser.parse_known_args()
    fake_part.serve("personality", options.ready_fd)


main()
