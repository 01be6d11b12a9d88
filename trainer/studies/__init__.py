"""Studies: several trainings of one job, planned step by step, and the results that they give together."""
