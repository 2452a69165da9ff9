"""What a function measures in a process of its own, and the peak memory of that process."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_process(
    work: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> tuple[Result, float]:
    """What ``work`` returns, and the peak memory (MiB) of its process and that one's workers."""
    peak = 0.0
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(work, *arguments, **named)
        while not found.done():
            time.sleep(0.1)
            peak = max(peak, sum(tree_memory(pid) for pid in list(pool._processes)))
        return found.result(), peak


def tree_memory(root: int) -> float:
    """Memory of a process and all below it (MiB), shared pages counted once; Linux says it."""
    total, todo = 0.0, [root]
    while todo:
        process = Path(f"/proc/{todo.pop()}")
        try:
            pages = (process / "smaps_rollup").read_text(encoding="ascii")
            for task in (process / "task").iterdir():
                todo += map(int, (task / "children").read_text(encoding="ascii").split())
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        total += float(pages.partition("\nPss:")[2].split()[0]) / 1024
    return total
