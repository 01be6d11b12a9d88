"""Reports for people: pages of datasets, jobs and studies, charts, contact sheets and galleries."""
