"""What carries publications between nodes, behind one contract; one file a broker."""
