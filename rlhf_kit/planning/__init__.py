"""What a run would take, before it starts: memory, FLOPs, hours; and what to change where it will not fit."""
