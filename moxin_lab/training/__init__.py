"""The engine of every training: fit, exact resume, schedules, optimizer, loss."""
