"""Run cases by their seeds, in one process, and print what differs: `python -m tests.model FIRST LAST`."""

import sys
import time

import torch

from tests.model.runs import differences


def main(first, last):
    """Every seed from first to last, without last; a line for each difference, and one at the end."""
    torch.set_num_threads(1)
    found, began = set(), time.process_time()
    for seed in range(first, last):
        for difference in differences(seed):
            found.add(seed)
            print(*difference, sep="  ", flush=True)
    spent = time.process_time() - began
    print(f"{len(found)} of {last - first} cases differ; {spent:.0f} s of CPU time")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
