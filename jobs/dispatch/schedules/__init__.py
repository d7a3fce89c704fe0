"""Jobs on a clock: when a schedule fires, what became of its ticks, and the thread that looks."""
