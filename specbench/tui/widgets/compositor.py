"""Textual's compositor, made to render what changed and nothing else.

Textual renders every widget that meets the rectangle around all changes; a headline above and a clock below make that
rectangle the screen. Beside a live run that was most of the viewer's processor time. A test holds the two together.
"""

from __future__ import annotations

from itertools import pairwise

from textual._compositor import ChopsUpdate, Compositor
from textual.geometry import Region
from textual.strip import Strip


class SparingCompositor(Compositor):
    """Partial updates from the rows and columns that are dirty."""

    def render_partial_update(self) -> ChopsUpdate | None:
        """What has to be written to the terminal; None where nothing has changed."""
        spans = list(self._regions_to_spans(self._dirty_regions))
        self._dirty_regions.clear()
        if not spans:
            return None
        cuts = self.cuts
        chops: list[dict[int, Strip | None]] = [{} for _ in cuts]
        missing: dict[int, set[int]] = {}
        for y, x1, x2 in spans:
            if 0 <= y < len(cuts):
                row = cuts[y]
                chops[y] = dict.fromkeys(row[:-1])
                stretches = pairwise(row)
                missing.setdefault(y, set()).update(begin for begin, end in stretches if begin < x2 and end > x1)
        # Front to back: whatever is painted first on a stretch stays. Containers lie behind what they contain.
        for widget, (region, clip) in self.visible_widgets.items():
            area = region.intersection(clip)
            begin, end = area.column_span
            rows = [y for y in area.line_range if any(begin <= cut < end for cut in missing.get(y, ()))]
            if not rows:
                continue
            top = rows[0]
            crop = Region(begin - region.x, top - region.y, area.width, rows[-1] + 1 - top)
            strips = widget.render_lines(crop)
            for y in rows:
                inside = [cut for cut in cuts[y] if begin <= cut <= end]
                parts = strips[y - top].divide([cut - begin for cut in inside[1:]])
                for cut, part in zip(inside, parts, strict=False):
                    if cut in missing[y]:
                        chops[y][cut] = part
                        missing[y].discard(cut)
        return ChopsUpdate(chops, spans, [row[1:] for row in cuts])
