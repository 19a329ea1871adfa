"""The search: the grid, who goes on, what it costs, who trains what, what is shown."""
