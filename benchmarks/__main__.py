"""Speed and strength side by side with other libraries, in one process: `make bench`, or

    python -m benchmarks [--quick] [--attacks PGD C&W square] [--libraries advcourse adv-lib] [--models cnn resnet]

See README.md in this folder for how to read the tables.
"""

from collections.abc import Sequence

from . import harness, labels, scores, training, transfer, white_box

PARTS: list[harness.Part] = [white_box, transfer, scores, labels, training]


def main(argv: Sequence[str] | None = None) -> list[harness.Row]:
    args = harness.arguments([task for part in PARTS for task in part.TASKS], argv)
    rows: list[harness.Row] = []
    for part in PARTS:
        names = [task.name for task in part.TASKS]
        if tasks := [task for task in args.tasks if task.name in names]:
            rows += harness.run(part, tasks, args)
    return rows


if __name__ == "__main__":
    main()
