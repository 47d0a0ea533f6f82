"""Random cases through Triton's interpreter: `TRITON_INTERPRET=1 python -m tests.kernels.triton_kernels FIRST LAST`."""

import sys
import warnings

from tests.kernels.triton_kernels.random_runs import differences


def main(first, last):
    """Print what differs, and how many cases did."""
    out = 0
    for seed in range(first, last):
        found = differences(seed)
        out += bool(found)
        print(*found[:3], sep="\n", end="\n" if found else "", flush=True)
        if seed % 20 == 19:
            print(f"{seed - first + 1} cases, {out} out of bounds", flush=True)
    print(f"{last - first} cases, {out} out of bounds", flush=True)
    return 1 if out else 0


if __name__ == "__main__":
    warnings.simplefilter("ignore", RuntimeWarning)
    sys.exit(main(*map(int, sys.argv[1:])))
