"""The web framework's session, behind one contract; one file a framework."""
