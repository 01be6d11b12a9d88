"""Studies: several trainings of one job, run as processes, and what is learnt from them together."""
