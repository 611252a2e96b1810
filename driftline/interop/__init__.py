"""Other libraries' parts in driftline, and driftline's parts in theirs."""
