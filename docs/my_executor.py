"""An executor of one's own: `mcr2 table --executor docs/my_executor.py:OneByOne` runs by it."""

from experiments.runs.runner import run


class OneByOne:
    """Runs in the command's own process, one after the other."""

    at_once = 1

    def __init__(self, options, machines, out):
        self.machine, self.waiting = machines[0], []

    def submit(self, cells):
        self.waiting = list(cells)

    def ended(self):
        one = self.waiting.pop(0)
        try:
            run(one.spec, one.folder, self.machine)
        except Exception as error:
            return {one: f"{type(error).__name__}: {error}"}
        return {one: "it left no record"}

    def running(self):
        return self.waiting[:1]

    def close(self):
        pass
