"""The race clock: recorded seconds, driven by the wall clock at a speed. No Textual."""

from __future__ import annotations

import time
from collections.abc import Callable

SPEEDS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


class ReplayClock:
    """A position between 0 and `duration` that moves while playing. now: a monotonic clock, frozen in tests."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._origin = 0.0
        """Position at the wall time `_since`."""
        self._since = now()
        self.is_playing = False
        self.speed = 1.0
        self.duration = 0.0

    def position(self) -> float:
        """Recorded seconds; stops by itself at the end."""
        if not self.is_playing:
            return self._origin
        reached = self._origin + (self._now() - self._since) * self.speed
        if reached >= self.duration:
            self._origin, self.is_playing = self.duration, False
            return self.duration
        return reached

    def seek(self, seconds: float) -> None:
        """Go to a moment, playing or not."""
        self._origin, self._since = min(max(0.0, seconds), self.duration), self._now()

    def play(self) -> None:
        """From where it stands; from the beginning where it stands at the end."""
        if self._origin >= self.duration:
            self._origin = 0.0
        self._since, self.is_playing = self._now(), True

    def pause(self) -> None:
        """Stand still."""
        self._origin, self.is_playing = self.position(), False

    def change_speed(self, places: int) -> None:
        """Faster or slower by so many places of SPEEDS; the position does not jump."""
        self.seek(self.position())
        place = SPEEDS.index(self.speed) + places
        self.speed = SPEEDS[min(max(0, place), len(SPEEDS) - 1)]

    def set_duration(self, seconds: float) -> None:
        """A longer race (an answer grew, a pane was added); the position does not jump."""
        self.seek(self.position())
        self.duration = seconds
        self._origin = min(self._origin, seconds)
