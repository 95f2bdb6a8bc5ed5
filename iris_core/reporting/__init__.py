"""What people read: the summary table, the report's page and figures, the comparison of objectives."""
