"""Whether this tree trains slower than another revision, by the ratio of steps that take turns.

    python benchmarks/gate.py main            exit code 1 if a step takes over 1.075 times as long as in that revision

Both trees run `fit` on the bundled model in processes of their own, a step each in turn, and the median of the ratios
of neighbouring steps decides: whatever else the machine does falls on both. A step that is 15 % slower lies as far
above the bound as an equal one lies below it; `--rounds` makes the median sharper.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import fit

BOUND = 1.075


def ratios(revision: str, folder: Path, rounds: int) -> list[float]:
    """Seconds of a step of this tree, relative to the step of the other one before or after it."""
    other = folder / "other"
    subprocess.run(["git", "worktree", "add", "--detach", "-q", str(other), revision], cwd=fit.ROOT, check=True)
    try:
        ours = fit.bundled()["ours"]
        reports = fit.side_by_side({"this": ours, "other": ours._replace(tree=other)}, folder, rounds)
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=fit.ROOT, check=True)
    seconds = {name: [sum(one["parts"].values()) for one in steps] for name, steps in reports.items()}
    return [this / before for this, before in zip(seconds["this"], seconds["other"], strict=True)]


def main() -> None:
    """Prints the ratio; ends with exit code 1 if it is above the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="what to compare this tree with, such as main or HEAD~1")
    parser.add_argument("--rounds", type=int, default=40, help="steps of each")
    given = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "checkpoints").symlink_to(fit.ROOT / "checkpoints")
        found = ratios(given.revision, folder, given.rounds)
    median, quartiles = statistics.median(found), statistics.quantiles(found)
    print(f"a step takes {median:.3f} times as long as in {given.revision} ({quartiles[0]:.3f} to {quartiles[2]:.3f})")
    sys.exit(int(median > BOUND))


if __name__ == "__main__":
    main()
