"""Studies, one file each: a grid of specs over named axes, and a reading of their records."""
