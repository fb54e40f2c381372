"""A clock that moves only where a test says so; stands in for the module `time`."""


class Time:
    """Seconds since some moment that nobody should care about."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
