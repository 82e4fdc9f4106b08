"""Look for random programs of which the derived spec is wrong.

    python scripts/fuzz_derivation.py --programs 5000 --seed 1 --family ties

prints every program with a fault, made as small as it can be.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "rig"))

from program_families import FAMILIES
from programs import fault, random_program, smallest


def main() -> int:
    """Return how many programs have a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10, help="most of one program")
    parser.add_argument("--family", choices=FAMILIES, help="more of one kind")
    settings = parser.parse_args()
    faults = 0
    for number in range(settings.programs):
        generator = np.random.default_rng((settings.seed, number))
        program = random_program(generator, settings.steps, settings.family)
        if fault(program):
            found = smallest(program)
            faults += 1
            title = f"program ({settings.seed}, {number}): {fault(found)}"
            print(f"{title}\n{found}\n", flush=True)
    print(f"{settings.programs} programs, {faults} with a fault")
    return faults


if __name__ == "__main__":
    sys.exit(bool(main()))
