"""Run a module as `python -m` would, and write down which instructions of some files ran, and what was imported.

    python executed.py TASK MODULE ARGUMENT...

TASK is a JSON file with `files` (path of a source file -> lines of interest), `result` (the JSON file to write). It is
called by its path and imports nothing of the package, so that the tracer sees all imports of the package.

Python 3.12 has `sys.monitoring`, which sees each instruction once and then costs nothing; before that `sys.settrace`
sees every instruction of the functions that hold a line of interest.
"""

import json
import os
import runpy
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

_TOOL = 3  # of the six numbers that sys.monitoring has, one that no known tool takes


class Watch:
    """Gathers the instructions that run in code objects with lines of interest."""

    def __init__(self, files: dict[str, list[int]]) -> None:
        self._lines = {path: set(lines) for path, lines in files.items()}
        self._wanted: dict[CodeType, bool] = {}
        self.seen: dict[CodeType, set[int]] = {}

    def start(self) -> None:
        """Watch everything that starts to run from now on, in every thread."""
        if sys.version_info >= (3, 12):
            self._monitor()
        else:
            threading.settrace(self._trace)
            sys.settrace(self._trace)

    def stop(self) -> None:
        """End watching."""
        if sys.version_info >= (3, 12):
            sys.monitoring.free_tool_id(_TOOL)
        else:
            sys.settrace(None)

    def positions(self) -> dict[str, list[list[int]]]:
        """Per file the places of all instructions that ran: line, column, end line, end column."""
        found: dict[str, set[tuple[int, ...]]] = {}
        for code, offsets in self.seen.items():
            places = list(code.co_positions())
            for offset in offsets:
                line, end_line, column, end_column = places[offset // 2]
                if line is not None and end_line is not None and column is not None and end_column is not None:
                    place = (line, column, end_line, end_column)
                    found.setdefault(os.path.realpath(code.co_filename), set()).add(place)
        return {path: sorted(map(list, places)) for path, places in sorted(found.items())}

    def wants(self, code: CodeType) -> bool:
        """Whether a code object holds a line of interest."""
        if code not in self._wanted:
            lines = self._lines.get(os.path.realpath(code.co_filename), set())
            self._wanted[code] = not lines.isdisjoint(line for _, _, line in code.co_lines() if line)
            if self._wanted[code]:
                self.seen[code] = set()
        return self._wanted[code]

    def _trace(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if not self.wants(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        add = self.seen[frame.f_code].add

        def each(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
            if event == "opcode":
                add(frame.f_lasti)
            return each

        return each

    if sys.version_info >= (3, 12):

        def _monitor(self) -> None:
            monitoring = sys.monitoring
            events = monitoring.events

            def started(code: CodeType, _: int) -> Any:
                if self.wants(code):
                    monitoring.set_local_events(_TOOL, code, events.INSTRUCTION)
                return monitoring.DISABLE

            def ran(code: CodeType, offset: int) -> Any:
                self.seen[code].add(offset)
                return monitoring.DISABLE

            monitoring.use_tool_id(_TOOL, "polygrain attest")
            monitoring.register_callback(_TOOL, events.PY_START, started)
            monitoring.register_callback(_TOOL, events.INSTRUCTION, ran)
            monitoring.set_events(_TOOL, events.PY_START)


def main(task: Path, module: str, arguments: list[str]) -> None:
    """Run `module` under watch; the result is written however it ends, except by a kill."""
    said = json.loads(task.read_text(encoding="utf-8"))
    watch = Watch(said["files"])
    sys.argv = [module, *arguments]
    watch.start()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        watch.stop()
        modules = sorted({name.partition(".")[0] for name in list(sys.modules)})
        Path(said["result"]).write_text(
            json.dumps({"modules": modules, "positions": watch.positions()}), encoding="utf-8"
        )


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file: its neighbours are no top-level modules
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
