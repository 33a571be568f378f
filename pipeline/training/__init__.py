"""The loop, the optimiser and its schedule, the state, and the processes they run on."""
