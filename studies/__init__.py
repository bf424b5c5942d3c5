"""The paper's tables: its modules, the points per scale, its decoder among its peers; and what each part costs."""
