"""The terminal interface: a viewer of journals in a process of its own. No torch, and nothing here writes a run.

Rooms: what is read (follow, index, timeline, ...) knows nothing of Textual and is tested without it; `widgets` draw;
`views` are the screens. Model text goes through `sanitise` and nowhere else.
"""
