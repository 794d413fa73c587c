"""What a run will cost: programs, machine peaks, forecasts."""
